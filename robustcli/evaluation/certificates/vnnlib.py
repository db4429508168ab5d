"""The question that stays open of one image, in the format of complete verifiers (VNN-LIB).

Source: the VNN-LIB standard, https://www.vnnlib.org; SMT-LIB 2 syntax, as the verification competitions use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal

from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.errors import UsageError


def vnnlib(x: Tensor, label: int, classes: int, ball: Ball) -> str:
    """exists X in [x - eps, x + eps] cut by [low, high]: Y_k >= Y_label for a class k != label.

    X_i are the pixels of x [C, H, W] in C order, Y_k the logits. "unsat" proves the image, "sat" breaks it.
    The decimals of the box are rounded outwards, by less than two units in the last place of a float64.

    Raises UsageError for l2 and l1, which are no boxes; ValueError for a label that is no class.
    """
    check_norm(ball)
    if not 0 <= label < classes:
        raise ValueError(f"label must be in [0, {classes}), got {label}")
    return "\n".join(_lines(x, label, classes, ball)) + "\n"


def check_norm(ball: Ball) -> None:
    """Raises UsageError where the threat is no box."""
    if ball.norm != "linf":
        raise UsageError(
            f"VNN-LIB states boxes, and a ball of norm {ball.norm} is none",
            where="--export",
            hint="export with norm: linf",
        )


def _lines(x: Tensor, label: int, classes: int, ball: Ball) -> Iterator[str]:
    """The file, line by line."""
    pixels: list[float] = x.detach().cpu().double().flatten().tolist()
    rivals = [k for k in range(classes) if k != label]
    shape = " x ".join(map(str, x.shape))
    yield f"; class {label} against every other class, linf radius {ball.eps!r}, pixels {shape} in C order"
    yield from (f"(declare-const X_{i} Real)" for i in range(len(pixels)))
    yield from (f"(declare-const Y_{k} Real)" for k in range(classes))
    for i, value in enumerate(pixels):
        lower, upper = box(value, ball)
        yield f"(assert (>= X_{i} {decimal(lower)}))"
        yield f"(assert (<= X_{i} {decimal(upper)}))"
    yield "(assert (or"
    yield from (f"    (and (>= Y_{k} Y_{label}))" for k in rivals)
    yield "))"


def box(value: float, ball: Ball) -> tuple[float, float]:
    """(lower, upper) of one pixel: value -/+ eps, rounded outwards and cut by the pixel box."""
    lower = math.nextafter(value - ball.eps, -math.inf)
    upper = math.nextafter(value + ball.eps, math.inf)
    return max(lower, ball.low), min(upper, ball.high)


def decimal(value: float) -> str:
    """A number as SMT-LIB writes it: no exponent, a dot, and digits that give the same float64 back."""
    text = format(Decimal(repr(value)), "f")
    return text if "." in text else f"{text}.0"
