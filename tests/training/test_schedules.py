"""Schedules against their formulas; optimisers and their state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustcli import registry
from robustcli.errors import CheckpointError
from robustcli.training.saved import pack_optimizer, unpack_optimizer

SCHEDULES, OPTIMIZERS = list(registry.schedules), list(registry.optimizers)


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda e: e.name)
@given(t=st.floats(1e-6, 1 - 1e-6))
def test_factors_lie_in_0_1(entry, t):
    assert 0 <= entry.fn(t) <= 1


def test_known_points():
    get = {e.name: e.fn for e in SCHEDULES}
    assert get["constant"](0.3) == 1
    assert [get["step"](t) for t in (0.4, 0.6, 0.8)] == pytest.approx([1, 0.1, 0.01])
    assert [get["cyclic"](t) for t in (0.25, 0.5, 0.75)] == pytest.approx([0.5, 1, 0.5])
    assert (
        get["one_cycle"](0.25) == pytest.approx(1)
        and get["one_cycle"](1e-9) == pytest.approx(0.04)
        and get["one_cycle"](1 - 1e-9) == pytest.approx(0)
    )
    assert [get["cosine"](t) for t in (1e-9, 0.5, 1 - 1e-9)] == pytest.approx([1, 0.5, 0], abs=1e-6)
    assert get["cosine"](0.1, warmup=0.2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("step", {"milestones": (1.5,)}),
        ("step", {"gamma": 0}),
        ("cyclic", {"peak": 1}),
        ("one_cycle", {"warmup": -1}),
        ("one_cycle", {"end": 2}),
        ("cosine", {"warmup": 1}),
    ],
)
def test_bad_values_are_named(name, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        registry.schedules.get(name).fn(0.5, **bad)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(
        memory_format=torch.channels_last
    )


def step(net, optimizer):
    optimizer.zero_grad()
    net(torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("entry", OPTIMIZERS, ids=lambda e: e.name)
def test_packed_state_continues_to_the_same_bits(entry):
    a, b = network(), network()
    oa, ob = entry.fn(a), entry.fn(b)
    step(a, oa), step(a, oa)
    packed = {k: v.clone() for k, v in pack_optimizer(a, oa).items()}
    b.load_state_dict(a.state_dict())
    unpack_optimizer(b, ob, packed)
    step(a, oa), step(b, ob)
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("entry", OPTIMIZERS, ids=lambda e: e.name)
def test_norms_and_biases_do_not_decay_unless_asked(entry):
    by_size = {
        min(p.dim() for p in g["params"]): g["weight_decay"]
        for g in entry.fn(network(), weight_decay=0.1).param_groups
    }
    assert by_size == {2: 0.1, 1: 0.0}
    assert [
        g["weight_decay"] for g in entry.fn(network(), weight_decay=0.1, decay_norms=True).param_groups
    ] == [0.1]
    with pytest.raises(ValueError, match="lr"):
        entry.fn(network(), lr=0)


def test_foreign_optimizer_state_is_refused():
    net = network()
    with pytest.raises(CheckpointError, match="does not fit"):
        unpack_optimizer(
            net, registry.optimizers.get("sgd").fn(net), {"nobody\x1fmomentum_buffer": torch.zeros(3)}
        )
