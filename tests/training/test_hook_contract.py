"""What every registered training hook must keep; a new hook is tested the day it is registered."""

import copy

import annotated_types
import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.errors import CheckpointError
from robustcli.training.hook import Hook, StepContext

HOOKS = registry.hooks.names()
TOTAL = 8  # steps of a run; the last two are beyond the default start of every hook


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    net[5].bias.requires_grad_(False)  # a frozen parameter stays frozen
    net[3].eval()  # and a module out of training mode stays so
    return net.to(memory_format=torch.channels_last)


def batch(k):
    generator = torch.Generator().manual_seed(k)
    return torch.rand(6, 1, 4, 4, generator=generator), torch.randint(0, 3, (6,), generator=generator)


def context_of(net, k):
    x, y = batch(k)

    def gradients(wanted):
        buffers = [(b, b.clone()) for b in net.buffers()]
        grads = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), wanted, materialize_grads=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        return [g.detach() for g in grads]

    return StepContext(net, gradients, (k + 0.5) / TOTAL)


def step(net, hook, k):
    """The protocol, without anything else."""
    now = context_of(net, k)
    x, y = batch(k)
    hook.before_loss(now)
    net.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1).step()
    hook.after_step(now)


def everything(net, hook):
    """All tensors of model, hook and averaged model, copied."""
    average = hook.averaged()
    parts = {
        "net": net.state_dict(),
        "hook": hook.state(),
        "average": {} if average is None else average.state_dict(),
    }
    return {
        f"{part}.{name}": tensor.clone()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def same(got, expected):
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


def flags(net):
    return [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]


@pytest.mark.parametrize("name", HOOKS)
def test_a_run_stays_finite_and_flags_stay(name):
    net = network()
    before, random = flags(net), torch.get_rng_state()
    hook = registry.hooks.get(name).fn(net)
    assert isinstance(hook, Hook)
    start = everything(net, hook)
    for k in range(TOTAL):
        step(net, hook, k)
        assert flags(net) == before
    hook.refresh([batch(k)[0] for k in range(2)])
    end = everything(net, hook)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in end.values()) and not torch.equal(
        end["net.0.weight"], start["net.0.weight"]
    )
    assert flags(net) == before and torch.equal(torch.get_rng_state(), random)
    assert int(end["net.1.num_batches_tracked"]) == TOTAL


@pytest.mark.parametrize("name", HOOKS)
def test_a_thrown_away_step_leaves_no_trace(name):
    net, untouched = network(), network()
    hook, other = (registry.hooks.get(name).fn(each) for each in (net, untouched))
    for k in range(TOTAL):
        before = everything(net, hook)
        now = context_of(net, k + 100)
        hook.before_loss(now)
        hook.undo(now)
        same(everything(net, hook), before)
        step(net, hook, k)
        step(untouched, other, k)
    same(everything(net, hook), everything(untouched, other))


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("cut", [1, 5, 7])
def test_a_fresh_hook_goes_on_bitwise(name, cut):
    net = network()
    hook = registry.hooks.get(name).fn(net)
    for k in range(cut):
        step(net, hook, k)
    weights, state = (
        {key: tensor.clone() for key, tensor in tensors.items()}
        for tensors in (net.state_dict(), hook.state())
    )
    resumed = network()
    fresh = registry.hooks.get(name).fn(resumed)
    resumed.load_state_dict(weights)
    fresh.load(state)
    for k in range(cut, TOTAL):
        step(net, hook, k)
        step(resumed, fresh, k)
    for each in (hook, fresh):
        each.refresh([batch(0)[0]])
    same(everything(resumed, fresh), everything(net, hook))


@pytest.mark.parametrize("name", HOOKS)
def test_the_averaged_model_is_one_object_ready_to_use(name):
    net = network()
    hook = registry.hooks.get(name).fn(net)
    seen = []
    for k in range(TOTAL):
        step(net, hook, k)
        if hook.averaged() is not None:
            seen.append(hook.averaged())
    assert len({id(module) for module in seen}) <= 1
    for average in seen[-1:]:
        assert (
            average is not net
            and not any(m.training for m in average.modules())
            and not any(p.requires_grad for p in average.parameters())
        )
        assert {id(p) for p in average.parameters()}.isdisjoint(id(p) for p in net.parameters())
        assert average(batch(0)[0]).shape == (6, 3)
    assert (type(hook).averaged is not Hook.averaged) == bool(seen)  # the step orders hooks by this


@pytest.mark.parametrize("name", HOOKS)
def test_state_is_tensors_that_only_their_model_takes(name):
    net = network()
    hook = registry.hooks.get(name).fn(net)
    for k in range(TOTAL):
        step(net, hook, k)
    state = hook.state()
    assert all(
        type(key) is str and isinstance(tensor, torch.Tensor) and not tensor.requires_grad
        for key, tensor in state.items()
    )
    wider = copy.deepcopy(network())
    wider[5] = nn.Linear(64, 4)
    other = registry.hooks.get(name).fn(wider)
    if state:
        with pytest.raises(CheckpointError):
            other.load(state)
    else:
        other.load(state)
        assert other.state() == {}


@pytest.mark.parametrize("name", HOOKS)
def test_numbers_are_bounded_where_configs_are_checked(name):
    entry = registry.hooks.get(name)
    bounds = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
    for param in registry.parameters(entry.fn).values():
        if getattr(param.annotation, "__origin__", param.annotation) in (int, float):
            assert any(
                isinstance(bound, bounds) for bound in getattr(param.annotation, "__metadata__", ())
            ), param.name
    assert entry.facts.extra_losses >= 0 and "arXiv:" in entry.fn.__doc__
