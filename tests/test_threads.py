"""The Python API from several threads at once, as servers call it: the verdicts of one thread."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from robustcli.api import Verdict, attack, evaluate, load_model

N, THREADS, PATIENCE = 16, 4, 120
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.rand(N, 3, 8, 8, generator=GENERATOR), torch.randint(0, 3, (N,), generator=GENERATOR)


def network(training: bool) -> nn.Module:
    """The same weights at every call, from no global generator."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.train(training)


def measured(net: nn.Module, search: Any) -> Verdict:
    return evaluate(net, X, Y, eps=0.05, attack="pgd", steps=3, search=search, checks=2)


def told(verdict: Verdict) -> tuple[Any, ...]:
    """What must not depend on other threads."""
    alarms = [(alarm.name, alarm.evidence) for alarm in verdict.alarms]
    return verdict.clean_acc, verdict.survivors.tolist(), alarms, verdict.passes_per_sample


def together(bodies: list[Callable[[], Any]]) -> list[Any]:
    """What each body gives, all of them at once; an exception of one is raised."""
    results: list[Any] = [None] * len(bodies)
    failures: list[BaseException] = []
    start = threading.Barrier(len(bodies), timeout=PATIENCE)

    def run(place: int) -> None:
        try:
            start.wait()
            results[place] = bodies[place]()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads)
    return results


def process() -> tuple[Any, ...]:
    """What belongs to the whole process and must come back."""
    cudnn: Any = torch.backends.cudnn
    return (
        cudnn.allow_tf32,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        nn.Module.__call__,
        nn.Module.__getattr__,
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[2],
        dict(os.environ),
    )


@pytest.mark.parametrize("search", ["bf16", "fp32"])
def test_each_thread_its_own_model(search: str) -> None:
    nets = [network(training=place % 2 == 0) for place in range(THREADS)]
    before, alone = process(), [told(measured(net, search)) for net in nets[:2]]
    for _ in range(3):
        at_once = together([lambda net=net: measured(net, search) for net in nets])
        assert [told(verdict) for verdict in at_once] == alone * (THREADS // 2)
    assert [net.training for net in nets] == [True, False] * 2
    assert process() == before


@pytest.mark.parametrize("search", ["bf16", "fp32"])
def test_all_threads_one_model(search: str) -> None:
    net = network(training=True)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = process()
    alone = told(measured(net, search))
    points = attack(net, X, Y, eps=0.05, steps=3)
    flags = [module.training for module in net.modules()], [p.requires_grad for p in net.parameters()]
    for _ in range(3):
        *at_once, found = together(
            [lambda: measured(net, search)] * (THREADS - 1) + [lambda: attack(net, X, Y, eps=0.05, steps=3)]
        )
        assert [told(verdict) for verdict in at_once] == [alone] * (THREADS - 1)
        assert torch.equal(found, points)
        now = [module.training for module in net.modules()], [p.requires_grad for p in net.parameters()]
        assert now == flags
    assert process() == before


def test_models_built_at_once_have_the_weights_of_their_seed() -> None:
    def weights() -> Tensor:
        model = load_model("small_cnn", num_classes=3, channels=3, size=8)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    before, alone = process(), weights()
    assert all(torch.equal(alone, other) for other in together([weights] * THREADS))
    assert process() == before
