"""Training by recordings is training without them, bit for bit; and the race of the outer step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from recorded import on_cpu
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.evaluation.plan import Search
from robustcli.evaluation.quickest import Length
from robustcli.training import forward as module
from robustcli.training.forward import Forward
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
BALL = Ball("linf", 0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


def trained(graph: bool, objective: str = "madry", **changes) -> tuple[dict[str, torch.Tensor], MinMax]:
    """(weights after four steps, the step)."""
    net, entry = network(), registry.objectives.get(objective)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    settings = StepSettings(net, entry.fn, entry.facts.inner, partial(pgd, steps=4), BALL, optimizer)
    step = MinMax(replace(settings, search=Search(graph=graph), **changes))
    for k in range(4):
        step(X, Y, torch.arange(12), seed=0, epoch=k, progress=k / 4)
    return net.state_dict(), step


def growing(t: float):
    return partial(pgd, steps=4), Ball("linf", 0.05 + 0.1 * t)


CASES = {
    "madry": {},
    "trades": {"objective": "trades"},
    "in parts": {"micro_batch": 5},
    "a growing radius": {"strength": growing},
    "nuclear norm": {"objective": "nuat"},
    "statistics of the batch": {"attack_bn": "train"},
}


@pytest.mark.parametrize("case", CASES)
def test_weights_after_four_steps_are_the_same(case, monkeypatch):
    recorder = on_cpu(monkeypatch)
    (wanted, _), (got, step) = trained(False, **CASES[case]), trained(True, **CASES[case])
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    if case in ("nuclear norm", "statistics of the batch"):
        assert recorder.recorded == 0
        assert case != "nuclear norm" or "reports errors to the CPU" in step.way
    else:
        assert recorder.replayed > recorder.recorded and step.way == ""


def test_a_halved_micro_batch_gives_the_memory_of_recordings_back(monkeypatch):
    on_cpu(monkeypatch)
    _, step = trained(True)
    graphs = step.ascent._twin.graphs
    assert graphs.recorded and step.halve(12) == 6
    step(X, Y, torch.arange(12), seed=0, epoch=9)
    assert graphs.recorded == 0 and "memory ran out" in step.way


@pytest.fixture
def clock(monkeypatch):
    """clock(*seconds): what the forms of the outer step take; `compiled` are the networks compiled."""
    compiled = []

    def set_(*seconds):
        left = list(seconds)
        monkeypatch.setattr(module, "seconds_of", lambda work, device: (work(), left.pop(0))[1])
        return left

    monkeypatch.setattr(torch, "compile", lambda network, **_: (compiled.append(network), network)[1])
    set_.compiled = compiled
    return set_


@pytest.mark.parametrize(
    ("seconds", "length", "runs", "said"),
    [
        (
            (0.010, 0.007),
            Length(seconds=86400.0),
            True,
            "runs compiled: as it is 10 ms, compiled 7 ms for 12",
        ),
        ((0.010, 0.0098), Length(seconds=86400.0), False, "runs as it is: as it is 10 ms, compiled 9.8 ms"),
        ((0.010,), Length(seconds=300.0), False, ""),
        ((), Length(gradients=12 * 1000.0), False, ""),
    ],
)
def test_the_outer_step_is_compiled_where_that_is_faster_in_a_long_run(seconds, length, runs, said, clock):
    """Traps: the race moves running statistics, random numbers or gradients; an attack's pass starts it."""
    left, net = clock(*seconds), network()
    before, forward = {k: v.clone() for k, v in net.state_dict().items()}, Forward(net, race=length)
    with torch.no_grad():
        forward(X)
    net.eval()
    forward(X)
    assert len(left) == len(seconds), "only a pass that trains makes the race"
    net.load_state_dict(before)
    net.train()
    torch.manual_seed(5)
    logits = forward(X)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert not left and torch.equal(drawn, torch.rand(1)) and all(p.grad is None for p in net.parameters())
    assert (
        (net in clock.compiled) == runs and forward.way.endswith(said) == (not said) and said in forward.way
    )
    assert torch.equal(logits, Forward(network().train())(X)) and int(net[1].num_batches_tracked) == 1


def test_a_network_that_does_not_compile_trains_as_it_is(clock, monkeypatch):
    def refused(network, **options):
        raise RuntimeError("no compiler")

    clock(0.01)
    monkeypatch.setattr(torch, "compile", refused)
    forward = Forward(network().train(), race=Length(seconds=86400.0))
    forward(X)
    assert forward.way == "the outer step runs as it is: trying fails (RuntimeError)"
