"""The equal mean against the mean by hand, and BatchNorm statistics against those computed directly."""

import pytest
import torch
from torch import nn

from robustcli.errors import CheckpointError
from robustcli.training.hook import StepContext
from robustcli.training.hooks.swa import swa

BATCHES = [torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 8, 3)]


def context(net, progress):
    return StepContext(net, lambda wanted: pytest.fail("no pass"), progress)


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), *between, nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2, momentum=0.3)
    )


def drift(net, k):
    generator = torch.Generator().manual_seed(k)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
        net.train()(torch.rand(4, 2, 4, 4, generator=generator))


def averaged(net, hook, steps=range(3, 6)):
    for k in steps:
        drift(net, k)
        hook.after_step(context(net, 0.9))
    return hook


@pytest.mark.parametrize(("every", "used"), [(1, [4, 5, 6, 7, 8, 9]), (2, [4, 6, 8]), (4, [4, 8])])
def test_the_mean_by_hand(every, used):
    """Steps 0..9 of 10, start 0.45: step 4, in the middle of which the run stands at 0.45, is the first."""
    net = nn.Linear(2, 1).double()
    hook = swa(net, start=0.45, every=every)
    for k in range(10):
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[k**2, -k]]))
            net.bias.fill_(2.0**k)
        hook.after_step(context(net, (k + 0.5) / 10))
        assert (hook.averaged() is None) == (k < 4)
        taken = [i for i in used if i <= k]
        if taken:
            mean = [
                sum(term(i) for i in taken) / len(taken)
                for term in (lambda i: i**2, lambda i: -i, lambda i: 2.0**i)
            ]
            average = hook.averaged()
            assert [*average.weight[0].tolist(), average.bias.item()] == pytest.approx(mean, rel=1e-14)


def test_statistics_are_those_of_the_averaged_weights_on_the_given_batches():
    net = network()
    hook = averaged(net, swa(net))
    hook.refresh(iter(BATCHES))
    average = hook.averaged()
    features = [average[0](x) for x in BATCHES]
    means = torch.stack([f.mean((0, 2, 3)) for f in features])
    variances = torch.stack([f.var((0, 2, 3), unbiased=True) for f in features])
    torch.testing.assert_close(average[1].running_mean, means.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average[1].running_var, variances.mean(0), rtol=1e-5, atol=1e-6)
    deeper = [
        average[2](nn.functional.batch_norm(f, None, None, average[1].weight, average[1].bias, training=True))
        for f in features
    ]
    torch.testing.assert_close(
        average[3].running_mean,
        torch.stack([f.mean((0, 2, 3)) for f in deeper]).mean(0),
        rtol=1e-4,
        atol=1e-5,
    )
    assert not torch.allclose(average[1].running_mean, net[1].running_mean, atol=1e-3)
    assert (
        average[3].momentum == 0.3
        and not any(m.training for m in average.modules())
        and not any(p.requires_grad for p in average.parameters())
    )


def test_a_refresh_draws_nothing_and_leaves_the_live_model_alone():
    net = network(nn.Dropout(0.5))
    hook = averaged(net, swa(net))
    live, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    hook.refresh(BATCHES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, live[k]) for k, v in net.state_dict().items()) and all(
        m.training for m in net.modules()
    )
    twin = network(nn.Identity())  # dropout is off, as when the model is used
    twin.load_state_dict(hook.averaged().state_dict())
    torch.optim.swa_utils.update_bn(BATCHES, twin)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in hook.averaged().state_dict().items())


class Once:
    """An iterable that counts how often it is read."""

    def __init__(self):
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        return iter(BATCHES)


def test_batches_are_read_only_when_the_average_has_changed():
    net, batches = network(), Once()
    hook = swa(net, every=2)
    hook.refresh(batches)
    assert batches.reads == 0  # no average yet
    averaged(net, hook, range(1))
    hook.refresh(batches)
    hook.refresh(batches)
    assert batches.reads == 1
    averaged(net, hook, range(1, 2))  # between two averaged models
    hook.refresh(batches)
    assert batches.reads == 1
    averaged(net, hook, range(2, 3))
    hook.refresh(batches)
    assert batches.reads == 2


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(2, 2, 3)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
    ],
)
def test_without_running_statistics_no_batch_is_read(net):
    hook, batches = swa(net), Once()
    averaged(net, hook).refresh(batches)
    assert batches.reads == 0


def test_an_interrupted_refresh_is_done_again():
    def broken():
        yield BATCHES[0]
        raise KeyboardInterrupt

    net = network()
    hook, other = averaged(net, swa(net)), averaged(network(), swa(net))
    other.load(hook.state())
    with pytest.raises(KeyboardInterrupt):
        hook.refresh(broken())
    assert not any(m.training for m in hook.averaged().modules())
    with pytest.raises(ValueError, match="at least one batch"):
        hook.refresh([])
    for each in (hook, other):
        each.refresh(BATCHES)
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in hook.state().items())


def test_a_resume_between_two_averaged_models_is_bitwise():
    net = network()
    hook = averaged(net, swa(net, every=3), range(4))
    hook.refresh(BATCHES)
    state = {name: tensor.clone() for name, tensor in hook.state().items()}
    assert {k: int(state[k]) for k in ("seen", "count", "refreshed")} == {
        "seen": 4,
        "count": 2,
        "refreshed": 2,
    }
    resumed = network()
    resumed.load_state_dict(net.state_dict())
    fresh, batches = swa(resumed, every=3), Once()
    fresh.load(state)
    fresh.refresh(batches)
    assert batches.reads == 0 and fresh.averaged() is not None
    averaged(net, hook, range(4, 8))
    averaged(resumed, fresh, range(4, 8))
    assert int(hook.state()["count"]) == 3
    assert all(torch.equal(tensor, fresh.state()[name]) for name, tensor in hook.state().items())


def test_another_models_state_is_refused():
    state = swa(network()).state()
    with pytest.raises(CheckpointError, match="param.3.weight"):
        swa(nn.Sequential(*network(), nn.Flatten())).load({**state, "param.3.weight": torch.zeros(5)})


@pytest.mark.parametrize("wrong", [{"start": 1.0}, {"start": -0.1}, {"start": float("nan")}, {"every": 0}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        swa(network(), **wrong)
