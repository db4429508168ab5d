"""How long work takes on a device: warmed up, synchronised, repeated, with its spread."""

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
    """One way to compute.

    name: for tables. dtype: autocast type; float32 means none. tf32: CUDA rounds the factors of float32
    products to 10 bits of mantissa.
    """

    name: str
    dtype: torch.dtype
    tf32: bool = False


FP32, TF32, BF16 = (
    Precision("fp32", torch.float32),
    Precision("tf32", torch.float32, True),
    Precision("bf16", torch.bfloat16),
)


def precisions(device: torch.device) -> list[Precision]:
    """The precisions that the hardware has, the fastest last: fp32, tf32 on CUDA, bf16."""
    native = [FP32]
    if tf32_native(device):
        native.append(TF32)
    if bf16_native(device):
        native.append(BF16)
    return native


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the repetitions, seconds."""
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
    """How often a work is timed: for `budget` seconds, but at least `least` and at most `most` times.

    `warm` repetitions before them do not count.
    """

    least: int = 5
    budget: float = 1.0
    most: int = 50
    warm: int = 2


def timed(
    work: Callable[[], object], device: torch.device, repeat: Repeat, stop: Callable[[], None] = lambda: None
) -> Timing:
    """Seconds of each repetition of `work`. `stop` raises to interrupt; it is called before each."""
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
    """Seconds of each job in each round; the first round warms up and does not count.

    Each round runs all jobs in turn, so a drift in the machine's speed meets all jobs alike.
    """
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
    """TFLOP/s of square matrix products [n, n] x [n, n]: max over n of 2 n^3 / median seconds / 10^12.

    `size` in the answer is the n of that maximum.
    """
    best: dict[str, Any] = {}
    with tf32_products(precision.tf32):
        for n in sizes:
            a = torch.randn(n, n, device=device).to(precision.dtype)
            b = torch.randn(n, n, device=device).to(precision.dtype)
            out = torch.empty_like(a)
            product = functools.partial(torch.mm, a, b, out=out)
            rate = timed(product, device, repeat, stop).rate(2 * n**3 / 1e12)
            if not best or rate["median"] > best["tflops"]:
                best = {"tflops": rate.pop("median"), **rate, "size": n}
    return best
