"""What `--sweep KEY=VALUES` means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from robustcli.config.number import parse_int, parse_number
from robustcli.errors import UsageError

_KEYS = ("eps", "steps", "restarts")
_POINTS = 9  # of a..b
_MOST = 200  # values of one sweep
_HINT = "for example eps=0..16/255, eps=0,4/255,8/255, steps=1..200, restarts=1..10 or distance"


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    key: eps (pixel units of [0, 1]), steps, restarts or distance. values: ascending; () for distance.
    """

    key: str
    values: tuple[float, ...]


def parse_sweep(text: str) -> Sweep:
    """`distance`, `KEY=V,V,V`, `KEY=A..B` or `KEY=A..B:POINTS`.

    A..B for eps has 9 evenly spaced points. A..B for steps and restarts has A, B and those of 1, 2, 5, 10,
    20, 50, ... that lie between.

    Raises UsageError: unknown key, or values that are no numbers, too small, or too many.
    """
    if text.strip() == "distance":
        return Sweep("distance", ())
    key, equals, rest = text.partition("=")
    if key.strip() not in _KEYS or not equals:
        raise UsageError(
            f"--sweep {text!r}: expected distance, or KEY=VALUES with KEY one of {', '.join(_KEYS)}",
            where="eval.sweep",
            hint=_HINT,
        )
    try:
        values = _values(key.strip(), rest.strip())
    except ValueError as error:
        raise UsageError(f"--sweep {text!r}: {error}", where="eval.sweep", hint=_HINT) from error
    return Sweep(key.strip(), values)


def _values(key: str, text: str) -> tuple[float, ...]:
    """The values that `text` means. Raises ValueError."""
    number: Callable[[Any], float] = {"eps": parse_number}.get(key, parse_int)
    span = re.fullmatch(r"(.+?)\.\.(.+?)(?::(.+))?", text)
    if span is None:
        values = [number(part.strip()) for part in text.split(",")]
    else:
        low, high = number(span[1].strip()), number(span[2].strip())
        points = None if span[3] is None else parse_int(span[3].strip())
        if not low < high or (points is not None and not 2 <= points <= _MOST):
            raise ValueError(f"a range A..B:POINTS needs A < B and 2 to {_MOST} points")
        values = _between(key, low, high, points)
    least = int(key != "eps")
    if min(values) < least:
        raise ValueError(f"{key} must be >= {least}")
    if len(values) > _MOST:
        raise ValueError(f"at most {_MOST} values")
    return tuple(sorted(set(values)))


def _between(key: str, low: float, high: float, points: int | None) -> list[float]:
    """The values of A..B. eps: evenly spaced. Counts: 1, 2, 5, 10, 20, ..., or equal ratios, rounded."""
    if key == "eps":
        count = points or _POINTS
        return [low + (high - low) * k / (count - 1) for k in range(count - 1)] + [high]
    if low < 1:
        raise ValueError(f"{key} must be >= 1")
    if points is not None:
        return [round(low * (high / low) ** (k / (points - 1))) for k in range(points)]
    series = (m * 10**e for e in range(math.ceil(math.log10(high)) + 1) for m in (1, 2, 5))
    return [low, *(value for value in series if low < value < high), high]
