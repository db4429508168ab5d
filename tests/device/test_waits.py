"""How often a step waits for the device: stated, so that it rises by nobody's oversight."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.data.split import MemorySplit
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings
from robustcli.training.trainplan import Progress

CUDA = torch.device("cuda", 0)
IDS = torch.arange(6)


@pytest.fixture
def net(device):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
    return nn.Sequential(*parts).to(CUDA)


@pytest.fixture
def x(device):
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(CUDA)


def waits_of(device, net, x, name, norm="linf", *, keep="last", watched=False, **params):
    """{(call site, why): times} of an attack that breaks nothing: each step is one that nobody leaves in."""
    net.eval()
    with frozen(net):
        y, ids = net(x).argmax(1), IDS.to(CUDA)
        watch = (lambda rows, points: torch.zeros_like(rows, dtype=torch.bool)) if watched else None
        rng = RowRandom(0, "start", ids)
        oracle = Oracle(SearchTwin(net), x, Criterion(y), rng=rng, keep=keep, watch=watch)
        ball = Ball(norm, 1e-6)
        with device.counted() as waits:
            registry.attacks.get(name).fn(oracle, x, ball, **params)
    return waits


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_step_that_nobody_watches_has_none(device, net, x, norm, keep):
    assert not waits_of(device, net, x, "pgd", norm, keep=keep, steps=4, restarts=2)
    if norm != "l1":
        assert not waits_of(device, net, x, "apgd", norm, keep=keep, steps=12)


def test_apgd_under_l1_looks_at_its_checkpoints(device, net, x):
    waits = waits_of(device, net, x, "apgd", "l1", steps=25, widest=1.0)
    assert waits == {("attacks/apgd.py:_moved", "item"): 26}  # one step from checkpoint to checkpoint
    waits = waits_of(device, net, x, "apgd", "l1", steps=100, widest=1.0)
    assert waits == {("attacks/apgd.py:_moved", "item"): 26}  # four steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_a_watched_step_looks_once_for_successes(device, net, x, name, norm):
    few, many = (waits_of(device, net, x, name, norm, watched=True, steps=steps) for steps in (5, 15))
    assert many - few == {("core/best.py:_confirmed", "nonzero"): 10}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_waits_once_for_each_batch_of_queries(device, net, x, norm, watched):
    waits = waits_of(device, net, x, "square", norm, keep="best", watched=watched, queries=60)
    around = {("core/best.py:_confirmed", "nonzero"): 2} if watched else {}  # the start and the clean point
    assert waits.pop(("core/oracle.py:meet", "a copy to the CPU")) < 60 and waits == around


def test_survivors_are_chosen_with_one_look(device, net, x):
    """However many tensors an attack carries along."""
    oracle = Oracle(net, x, Criterion(IDS.to(CUDA) % 5), rng=RowRandom(0, "start", IDS.to(CUDA)), keep="best")
    oracle._leaving = True
    oracle._best.fallen[:2] = True
    with device.counted() as waits:
        assert len(oracle.compact(x, x, x, x)[3]) == 4
    assert waits == {("core/oracle.py:compact", "nonzero"): 1}


@pytest.mark.parametrize(
    ("objective", "hooks"), [("madry", []), ("trades", []), ("trades", ["awp", "ema"]), ("mart", ["swa"])]
)
@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_a_training_step_waits_once(device, net, x, objective, hooks, grad_clip):
    """Loss, its parts and the norm of the gradient come in one copy; attack and hooks need none."""
    entry, attack = registry.objectives.get(objective), registry.attacks.get("pgd").fn
    settings = StepSettings(
        net,
        entry.fn,
        entry.facts.inner,
        lambda oracle, x, ball: attack(oracle, x, ball, steps=3),
        Ball("linf", 0.1),
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        hooks=[registry.hooks.get(name).fn(net) for name in hooks],
        grad_clip=grad_clip,
    )
    step, ids = MinMax(settings), IDS.to(CUDA)
    step(x, ids % 5, ids, seed=0, epoch=0)  # the first one compares the twin with the model
    with device.counted() as waits:
        for _ in range(3):
            terms = step(x, ids % 5, ids, seed=0, epoch=0, progress=0.9)
            Progress(max_steps=3).add(terms)
    assert waits == {("training/descent.py:_read", "a copy to the CPU"): 3}


@pytest.mark.parametrize("fits", [True, False])
def test_batches_come_without_a_wait(device, monkeypatch, fits):
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    split = MemorySplit(pixels, torch.arange(40) % 5, tuple("abcde"))
    monkeypatch.setattr("robustcli.data.split.free_bytes", lambda place: 2**30 * fits)
    batches = list(torch.arange(40).split(8))
    list(split.stream(batches[:1], CUDA))  # what stays on the device goes there once
    with device.counted() as waits:
        got = list(split.stream(batches, CUDA))
    torch.cuda.synchronize()
    assert not waits and all(part.is_cuda for part in got[0])
    assert torch.equal(torch.cat([x for x, _, _ in got]).cpu(), pixels.float() / 255)
