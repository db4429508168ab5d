"""Rotations and translations: small to the eye, large in every norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.core.warp import warp
from robustcli.registry import attacks


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """One pass for each transformation tried."""
    if given["grid"]:
        return int(given["angles"] * given["shifts"] ** 2)
    return int(given["draws"])


@attacks.register(
    "spatial",
    kind="unbounded",
    norms=("linf", "l2", "l1"),
    needs="decisions",
    precision="bf16",
    passes=_passes,
    use="turned and shifted images",
    deterministic=False,
    keeps_best=True,
)
def spatial(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    rotation: Annotated[float, Ge(0), Le(180)] = 30.0,
    translation: Annotated[float, Ge(0), Le(1)] = 0.1,
    draws: Annotated[int, Ge(1)] = 10,
    grid: bool = False,
    angles: Annotated[int, Ge(1)] = 31,
    shifts: Annotated[int, Ge(1)] = 5,
) -> Tensor:
    """x_adv = T_{a, u, v}(x): the worst of some rotations by |a| <= rotation and shifts by |u|, |v| <= translation of the side.

    No norm bounds the change: the ball's radius plays no part, only its pixel box does. Pixels are interpolated bilinearly,
    and what turns or slides in from outside the image is 0 (black).

    Args:
        oracle: keeps the worst point per row; holds one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: its pixel box; norm and radius are ignored.
        rotation: largest angle, degrees in [0, 180].
        translation: largest shift as a share of height and of width, in [0, 1]; the paper's 3 of 28 to 32 pixels is about 0.1.
        draws: random transformations per row, >= 1; cost = one forward pass each (none for one in training). The paper's worst of 10.
        grid: try instead every combination of `angles` angles and `shifts` x `shifts` shifts, evenly spaced (the paper's
            grid: 31, 5, hence 775 forward passes for the rows that stand to the end).
        angles, shifts: size of the grid, >= 1; with 1 the angle or the shift is 0.

    Returns:
        x_adv [B, C, H, W], detached, in the pixel box.

    Raises:
        ValueError: a parameter outside its range.

    Source: Engstrom et al., ICML 2019, arXiv:1712.02779.
    """
    if not 0 <= rotation <= 180 or not 0 <= translation <= 1:
        raise ValueError(
            f"rotation must be in [0, 180] degrees and translation in [0, 1], got rotation {rotation}, translation {translation}"
        )
    if min(draws, angles, shifts) < 1:
        raise ValueError(
            f"draws, angles and shifts must be >= 1, got draws {draws}, angles {angles}, shifts {shifts}"
        )
    limit = torch.tensor((math.radians(rotation), translation, translation), device=x.device)
    x_adv = x
    for pose in _grid(angles, shifts) if grid else [None] * draws:
        unit = (
            oracle.rng.uniform((3,)).mul_(2).sub_(1)
            if pose is None
            else torch.tensor(pose, device=x.device).expand(len(x), 3)
        )
        x_adv = warp(x, *(unit * limit).unbind(1)).clamp_(ball.low, ball.high)
        if grid or draws > 1:
            oracle.score(x_adv)
            x, x_adv = oracle.compact(x, x_adv)
        if not oracle.alive:
            break
    return oracle.result(x_adv)


def _grid(angles: int, shifts: int) -> Iterator[tuple[float, float, float]]:
    """(angle, shift right, shift down), each evenly spaced in [-1, 1], or 0 alone."""

    def spaced(n: int) -> list[float]:
        return [2 * k / (n - 1) - 1 for k in range(n)] if n > 1 else [0.0]

    yield from ((a, u, v) for a in spaced(angles) for u in spaced(shifts) for v in spaced(shifts))
