"""CUDA graphs on a real device: they answer as the network does, share their memory, and fail alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial

import pytest
import torch
from recorded import StandIn, on_cpu
from torch import nn
from zoo import EPS, digits, honest

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core import graphs
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.evaluation.plan import AttackCall, Search
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

ATTACKS = {
    "pgd": {"steps": 6},
    "apgd": {"steps": 6, "loss": "dlr-targeted", "targets": 2},
    "fab": {"steps": 4, "restarts": 1},
    "square": {"queries": 12},
    "cw": {"steps": 5, "binary_search": 1},
}


@pytest.fixture(autouse=True)
def _recorder(device, monkeypatch):
    """On a CPU a tape stands in. Kernels are the same each time: answers can be compared to the bit."""
    if device.type == "cpu":
        on_cpu(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(graphs.CudaRecorder, "broken", False)


def network(device):
    return deepcopy(honest("bn")).to(device).eval().requires_grad_(False)


def images(device, first=1400, rows=12):
    x, y = digits()
    return x[first : first + rows].to(device), y[first : first + rows].to(device)


def points(twin, judge, device, name, norm, first, watched):
    """What one attack finds on one batch; with a watch rows leave."""
    (x, y), ball = images(device, first), Ball(norm, EPS if norm == "linf" else 1.0)
    criterion, call = Criterion(y), AttackCall.of(registry.attacks.get(name), ATTACKS[name])

    def watch(rows, candidates):
        return criterion.hit(judge(candidates), rows) & ball.contains(x[rows], candidates)

    rng = RowRandom(0, "start", torch.arange(len(x), device=device))
    oracle = call.oracle(twin, x, criterion, rng=rng, ball=ball, watch=watch if watched else None)
    return call.points(oracle, x, ball)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "norm"), [("pgd", "linf"), ("pgd", "l1"), ("apgd", "linf"), ("apgd", "l1")])
def test_gradients_and_steps_are_those_of_the_plain_copy(name, norm, dtype, device):
    same_points(name, norm, dtype, device)


@pytest.mark.parametrize(("name", "norm"), [("fab", "l2"), ("square", "linf"), ("cw", "l2")])
def test_other_attacks_find_the_same(name, norm, device):
    same_points(name, norm, torch.float32, device)


def same_points(name, norm, dtype, device):
    judge = network(device)
    plain, graphed = SearchTwin(judge, dtype=dtype), SearchTwin(judge, dtype=dtype, graph=True)
    with frozen(judge):
        for first, watched in ((1400, True), (1424, False), (1448, False)):
            wanted = points(plain, judge, device, name, norm, first, watched)
            assert torch.equal(points(graphed, judge, device, name, norm, first, watched), wanted)
    assert graphed.graphs.recorded and graphed.graphs.note == ""


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_by_recordings_is_training(dtype, wide, device):
    ends = [trained(device, Search(dtype, graph=graph, wide=wide)) for graph in (False, True)]
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def trained(device, search):
    net, entry = network(device).requires_grad_(True).train(), registry.objectives.get("trades")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    attack = partial(pgd, steps=5)
    settings = StepSettings(
        net, entry.fn, entry.facts.inner, attack, Ball("linf", EPS), optimizer, search=search
    )
    step = MinMax(settings)
    x, y = images(device)
    for epoch in range(5):
        step(x, y, torch.arange(len(x), device=device), seed=0, epoch=epoch)
    assert not search.graph or (step.ascent._twin.graphs.recorded and step.way == "")
    return list(net.state_dict().values())


class Waits(torch.autograd.Function):
    """The identity, which waits for the device where no operation shows it."""

    @staticmethod
    def forward(ctx, x):
        if x.is_cuda:
            torch.cuda.current_stream().synchronize()
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Hidden(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(Waits.apply(x))


def test_a_recording_that_fails_half_way_hurts_nothing_else(device, monkeypatch, request):
    """Memory, random numbers, other networks and trainings go on; nothing more is recorded."""
    if device.type == "cuda" and "APART" not in os.environ:
        # In a process of its own: what such a failure leaves behind must not meet the tests after this one.
        command = [sys.executable, "-m", "pytest", "-q", f"{__file__}::{request.node.name}"]
        ran = subprocess.run(command, env={**os.environ, "APART": "1"}, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-4000:]
        return
    if device.type == "cpu":

        class Failing(StandIn):
            def record(self, work, buffers):
                graphs.CudaRecorder.broken = True
                raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(graphs, "recorder_for", lambda device: Failing())
    judge = Hidden(network(device))
    plain, graphed = (SearchTwin(judge, fold_bn=False, graph=graph) for graph in (False, True))
    for first in (1400, 1424):
        wanted = points(plain, judge, device, "pgd", "linf", first, False)
        assert torch.equal(points(graphed, judge, device, "pgd", "linf", first, False), wanted)
    assert graphed.graphs.recorded == 0 and graphed.graphs.note and graphs.CudaRecorder.broken
    assert torch.rand(8, device=device).isfinite().all() and torch.randn(1 << 20, device=device).std() > 0.9
    if device.type == "cuda":
        before = torch.cuda.memory_reserved(device)
        block = torch.empty(1 << 28, dtype=torch.uint8, device=device)
        del block
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved(device) <= before, "memory can still be given back"
    trained(device, Search())


def test_recordings_of_many_sizes_share_their_memory(device):
    """Not the sum of all sizes: one pool, of about what the largest takes, and outputs."""
    if device.type == "cpu":
        pytest.skip("a CPU has no pools")
    judge = nn.Sequential(*(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()), nn.Flatten(), nn.Linear(64 * 64, 10))
    twin = SearchTwin(judge.to(device).eval().requires_grad_(False), graph=True)
    taken = []
    for rows in (1024, 768, 512, 384, 256, 192):
        x = torch.rand(rows, 1, 8, 8, device=device)
        y = torch.zeros(rows, dtype=torch.int64, device=device)
        for _ in range(5):
            Oracle(twin, x, Criterion(y), rng=RowRandom(0, "start", y)).gradient(x)
        torch.cuda.empty_cache()
        taken.append(torch.cuda.memory_reserved(device))
    assert twin.graphs.recorded == 6 and taken[-1] < 1.6 * taken[0]


def test_a_replay_of_few_images_takes_less_time(device):
    """A GPU alone: a tape on a CPU is slower than the work."""
    if device.type == "cpu":
        pytest.skip("nothing is started faster on a CPU")
    judge, (x, y) = network(device), images(device, rows=8)
    seconds = {}
    for graph in (False, True):
        oracle = Oracle(SearchTwin(judge, graph=graph), x, Criterion(y), rng=RowRandom(0, "start", y))
        for _ in range(8):
            oracle.gradient(x)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(100):
            oracle.gradient(x)
        torch.cuda.synchronize()
        seconds[graph] = time.perf_counter() - began
    assert seconds[True] < 0.8 * seconds[False], (
        f"as it is {seconds[False]:.3f} s, by graph {seconds[True]:.3f} s"
    )
