"""The moving average against its recurrence by hand."""

import pytest
import torch
from torch import nn

from robustcli.errors import CheckpointError
from robustcli.training.hook import StepContext
from robustcli.training.hooks.ema import ema


def context(net, progress=0.5):
    return StepContext(net, lambda wanted: pytest.fail("no pass"), progress)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).to(
        memory_format=torch.channels_last
    )


def drift(net, k):
    """Step k of a training that needs no gradient; BatchNorm learns."""
    generator = torch.Generator().manual_seed(k)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
        net.train()(torch.rand(4, 1, 4, 4, generator=generator))


def test_the_schedule_of_the_decay_by_hand():
    net = nn.Linear(1, 1, bias=False).double()
    hook, expected, value = ema(net, decay=0.3, warmup=0.1), 0.0, 0.0
    for k in range(12):
        with torch.no_grad():
            net.weight.fill_(float(k**2 + 1))
        hook.after_step(context(net, (k + 0.5) / 20))
        t = k - 2  # 0.5/20 and 1.5/20 are the warm-up: a copy
        tau = 0.0 if t < 0 else [1 / 10, 2 / 11, 3 / 12, 4 / 13][t] if t < 3 else 0.3  # 4/13 > 0.3
        expected = tau * expected + (1 - tau) * (k**2 + 1)
        value = hook.averaged().weight.item()
        assert value == pytest.approx(expected, rel=1e-14)
        assert k >= 2 or value == k**2 + 1
    assert value < 12**2 + 1


def test_before_the_first_step_the_average_is_the_model():
    net = network()
    average = ema(net).averaged()
    assert average is not net and all(
        torch.equal(v, average.state_dict()[k]) for k, v in net.state_dict().items()
    )
    drift(net, 0)
    assert not torch.equal(net[0].weight, average[0].weight)  # and not a view of it


def test_no_decay_is_the_live_model_bitwise_and_decay_is_not():
    net = network()
    follows, lags = ema(net, decay=0.0, warmup=0.0), ema(net, decay=0.9, warmup=0.0)
    for k in range(4):
        drift(net, k)
        follows.averaged()[3].bias.fill_(
            float("inf")
        )  # mixing with share 1 would keep a trace of it: inf * 0
        for hook in (follows, lags):
            hook.after_step(context(net))
        live, same = net.state_dict(), follows.averaged().state_dict()
        assert live.keys() == same.keys() and all(torch.equal(v, same[key]) for key, v in live.items())
    assert not torch.allclose(lags.averaged()[0].weight, net[0].weight, atol=1e-3)


def test_all_buffers_are_copied_also_replaced_ones():
    """Trap: averaged or stale BatchNorm statistics; a module that assigns its buffer anew at each pass."""
    net = network()
    net.register_buffer("seen", torch.zeros(2))
    hook = ema(net, decay=0.999, warmup=0.0)
    for k in range(3):
        drift(net, k)
        net.seen = torch.full((2,), float(k + 1))
        hook.after_step(context(net))
        own = dict(hook.averaged().named_buffers())
        assert len(own) == 4 and all(torch.equal(buffer, own[name]) for name, buffer in net.named_buffers())
    assert int(own["1.num_batches_tracked"]) == 3 and own["1.running_mean"].any()


def test_the_average_keeps_memory_format_and_stays_in_eval_mode():
    net = network()
    hook = ema(net)
    first = hook.averaged()
    drift(net, 0)
    hook.after_step(context(net))
    assert (
        hook.averaged() is first
        and not any(m.training for m in first.modules())
        and not any(p.requires_grad for p in first.parameters())
    )
    assert first[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(m.training for m in net.modules()) and all(p.requires_grad for p in net.parameters())


def test_state_names_and_a_bitwise_round_trip_across_the_warm_up():
    net = network()
    hook = ema(net, warmup=0.2)
    for k in range(3):
        drift(net, k)
        hook.after_step(context(net, (k + 0.5) / 10))
    state = {name: tensor.clone() for name, tensor in hook.state().items()}
    names = {f"param.{n}" for n, _ in net.named_parameters()} | {
        f"buffer.{n}" for n, _ in net.named_buffers()
    }
    assert state.keys() == names | {"count"} and int(state["count"]) == 1 and state["count"].dim() == 0
    resumed = network()
    resumed.load_state_dict(net.state_dict())
    fresh = ema(resumed, warmup=0.2)
    fresh.load(state)
    for k in range(3, 6):
        for live, average in ((net, hook), (resumed, fresh)):
            drift(live, k)
            average.after_step(context(live, (k + 0.5) / 10))
    assert all(torch.equal(tensor, fresh.state()[name]) for name, tensor in hook.state().items())
    assert int(fresh.state()["count"]) == 4 and fresh.averaged()[0].weight.is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("fault", ["shape", "missing", "unknown", "dtype"])
def test_another_models_state_is_refused_and_nothing_is_written(fault):
    hook = ema(network())
    before = {name: tensor.clone() for name, tensor in hook.state().items()}
    state = {name: tensor.clone() + 1 for name, tensor in before.items()}
    if fault == "shape":
        state["param.3.weight"] = state["param.3.weight"][:, :5]
    elif fault == "missing":
        del state["param.3.weight"]
    elif fault == "unknown":
        state["param.4.weight"] = torch.zeros(1)
    else:
        state["param.3.weight"] = state["param.3.weight"].double()
    with pytest.raises(CheckpointError, match=r"param\.[34]\.weight") as caught:
        hook.load(state)
    assert caught.value.exit_code == 4 and all(
        torch.equal(tensor, before[name]) for name, tensor in hook.state().items()
    )


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"decay": float("nan")}, {"warmup": 1.0}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ema(network(), **wrong)
