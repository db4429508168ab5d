"""How long work takes on a device: warmed up, synchronised, repeated, with the spread; and the rate of a matrix product there."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustcli.runtime.device import synchronise
from robustcli.runtime.precision import bf16_native, tf32_native, tf32_products


@dataclass(frozen=True)
class Precision:
    """A way to compute: its name, the autocast type (float32: none), and whether CUDA may round factors of fp32 products to 10 bits."""

    name: str
    dtype: torch.dtype
    tf32: bool = False


FP32, TF32, BF16 = (
    Precision("fp32", torch.float32),
    Precision("tf32", torch.float32, True),
    Precision("bf16", torch.bfloat16),
)


def precisions(device: torch.device) -> list[Precision]:
    """fp32; tf32 on CUDA from compute capability 8.0 on; bf16 where it runs in hardware. The last is the fastest by design."""
    found = [FP32]
    if tf32_native(device):
        found.append(TF32)
    return [*found, BF16] if bf16_native(device) else found


@dataclass(frozen=True)
class Timing:
    """Seconds of the repetitions, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, seconds."""
        return statistics.median(self.seconds)

    def rate(self, amount: float) -> dict[str, float]:
        """amount / seconds: median, slowest and fastest repetition, and how many there were."""
        return {
            "median": amount / self.median,
            "low": amount / max(self.seconds),
            "high": amount / min(self.seconds),
            "repetitions": len(self.seconds),
        }


@dataclass(frozen=True)
class Repeat:
    """At least `least` repetitions, more until `budget` seconds are over, never more than `most`; before them `warm` that do not count."""

    least: int = 5
    budget: float = 1.0
    most: int = 50
    warm: int = 2


def timed(
    work: Callable[[], object], device: torch.device, repeat: Repeat, stop: Callable[[], None] = lambda: None
) -> Timing:
    """Seconds of `work`. `stop` raises to interrupt, between two repetitions."""
    seconds: list[float] = []
    for _ in range(repeat.warm):
        stop()
        work()
    synchronise(device)
    ends = time.perf_counter() + repeat.budget
    while len(seconds) < repeat.least or (time.perf_counter() < ends and len(seconds) < repeat.most):
        stop()
        began = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return Timing(tuple(seconds))


def interleaved(
    jobs: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each job in each round; every round runs all jobs in turn, so that a machine whose speed drifts slows all. One round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, work in jobs.items():
            stop()
            synchronise(device)
            began = time.perf_counter()
            work()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def matmul_peak(
    device: torch.device,
    precision: Precision,
    sizes: Sequence[int],
    repeat: Repeat,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """TFLOP/s of the fastest of some square matrix products: 2 n^3 operations over the median time of each n; `size` is that n."""
    best: dict[str, Any] = {}
    with tf32_products(precision.tf32):
        for n in sizes:
            a, b = (
                torch.randn(n, n, device=device).to(precision.dtype),
                torch.randn(n, n, device=device).to(precision.dtype),
            )
            out = torch.empty_like(a)
            product = functools.partial(torch.mm, a, b, out=out)
            rate = timed(product, device, repeat, stop).rate(2 * n**3 / 1e12)
            if not best or rate["median"] > best["tflops"]:
                best = {
                    "tflops": rate["median"],
                    "low": rate["low"],
                    "high": rate["high"],
                    "repetitions": rate["repetitions"],
                    "size": n,
                }
    return best
