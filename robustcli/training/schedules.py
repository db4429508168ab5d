"""Learning-rate schedules: t -> factor on the peak rate, t in (0, 1) the share of all steps done.

t is taken at the middle of a step, t = (step + 1/2) / steps, so no step has rate zero. Schedules depend on
steps and never on the clock, so a resumed run repeats them exactly.
"""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from robustcli.registry import schedules

Share = Annotated[float, Ge(0), Lt(1)]
Factor = Annotated[float, Ge(0), Le(1)]


def _half_cosine(s: float, low: float) -> float:
    """low + (1 - low) (1 + cos(pi s)) / 2: from 1 at s = 0 to `low` at s = 1."""
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * s))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


@schedules.register("constant")
def constant(t: float) -> float:
    """factor = 1."""
    return 1.0


@schedules.register("step")
def step(
    t: float,
    *,
    milestones: tuple[Annotated[float, Gt(0), Lt(1)], ...] = (0.5, 0.75),
    gamma: Annotated[float, Gt(0)] = 0.1,
) -> float:
    """factor = gamma^(number of milestones passed); milestones are shares of all steps in (0, 1).

    Raises ValueError if a milestone is outside (0, 1) or gamma <= 0.
    Source: Rice et al., ICML 2020, arXiv:2002.11569.
    """
    if not gamma > 0 or any(not 0 < m < 1 for m in milestones):
        raise ValueError(f"milestones must be in (0, 1) and gamma > 0, got {milestones} and {gamma}")
    return float(gamma ** sum(t >= m for m in milestones))


@schedules.register("cyclic")
def cyclic(t: float, *, peak: Share = 0.5) -> float:
    """factor = t / peak up to the peak, then (1 - t) / (1 - peak): one triangle.

    Raises ValueError if peak is outside [0, 1). Source: Wong et al., ICLR 2020, arXiv:2001.03994.
    """
    _check_share("peak", peak)
    return t / peak if t < peak else (1 - t) / (1 - peak)


@schedules.register("one_cycle")
def one_cycle(t: float, *, warmup: Share = 0.25, start: Factor = 0.04, end: Factor = 0.0) -> float:
    """factor rises from `start` to 1 over `warmup`, then falls to `end`, both by half a cosine.

    Args:
        warmup: share of all steps, in [0, 1). start, end: factors, in [0, 1].

    Raises ValueError if out of range. Source: Smith & Topin, 2018, arXiv:1708.07120.
    """
    _check_share("warmup", warmup)
    if not (0 <= start <= 1 and 0 <= end <= 1):
        raise ValueError(f"start and end must be in [0, 1], got {start} and {end}")
    if t < warmup:
        return _half_cosine(1 - t / warmup, start)
    return _half_cosine((t - warmup) / (1 - warmup), end)


@schedules.register("cosine")
def cosine(t: float, *, warmup: Share = 0.0) -> float:
    """factor = t / warmup in the warm-up, then half a cosine from 1 to 0.

    Raises ValueError if warmup is outside [0, 1). Source: Loshchilov & Hutter, ICLR 2017, arXiv:1608.03983.
    """
    _check_share("warmup", warmup)
    if t < warmup:
        return t / warmup
    return 0.5 * (1 + math.cos(math.pi * (t - warmup) / (1 - warmup)))
