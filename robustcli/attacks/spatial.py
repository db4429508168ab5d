"""Rotations and translations: small to the eye, large in every norm.

`spatial` has more than 50 lines: all but a dozen are its signature and its documentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product, repeat
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
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
    """x_adv = T_{a, u, v}(x), the worst of some turns |a| <= rotation and shifts |u|, |v| <= translation.

    T turns by the angle a and shifts by u to the right and by v down, see `core.warp`. No norm bounds the
    change. Pixels are interpolated bilinearly, and places outside the image hold 0 (black).

    Args:
        oracle: keeps the worst point per row; holds one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: its pixel box; norm and radius are ignored.
        rotation: largest angle, degrees in [0, 180].
        translation: largest shift as a share of height and of width, in [0, 1]; the paper's 3 of 28 to 32
            pixels is about 0.1.
        draws: random transformations per row, >= 1; cost = one forward pass each (none for one in training).
            The default is the paper's worst of 10.
        grid: try instead every combination of `angles` angles and `shifts` x `shifts` shifts, evenly spaced.
            The default is the paper's grid: 775 forward passes for the rows that stand to the end.
        angles: number of angles of the grid, >= 1; a single one is 0.
        shifts: number of shifts of the grid along each side, >= 1; a single one is 0.

    Returns:
        x_adv [B, C, H, W], detached, in the pixel box.

    Raises:
        ValueError: a parameter outside its range.

    Source: Engstrom et al., ICML 2019, arXiv:1712.02779.
    """
    if not 0 <= rotation <= 180 or not 0 <= translation <= 1:
        ranges = "rotation must be in [0, 180] degrees and translation in [0, 1]"
        raise ValueError(f"{ranges}, got rotation {rotation}, translation {translation}")
    if min(draws, angles, shifts) < 1:
        given = f"draws {draws}, angles {angles}, shifts {shifts}"
        raise ValueError(f"draws, angles and shifts must be >= 1, got {given}")
    limit = torch.tensor((math.radians(rotation), translation, translation), device=x.device)
    poses: Iterator[tuple[float, ...] | None] = repeat(None, draws)
    if grid:
        poses = _grid(angles, shifts)
    x_adv = x
    for pose in poses:
        a, u, v = (_unit(pose, x, oracle.rng) * limit).unbind(1)
        x_adv = warp(x, a, u, v).clamp_(ball.low, ball.high)
        if grid or draws > 1:
            oracle.score(x_adv)
            x, x_adv = oracle.compact(x, x_adv)
        if not oracle.alive:
            break
    return oracle.result(x_adv)


def _unit(pose: tuple[float, ...] | None, x: Tensor, rng: RowRandom) -> Tensor:
    """(angle, shift right, shift down) of each row, [R, 3], as shares in [-1, 1] of the largest ones.

    pose: the same for all rows; None draws one for each row.
    """
    if pose is None:
        return rng.uniform((3,)).mul_(2).sub_(1)
    return torch.tensor(pose, device=x.device).expand(len(x), 3)


def _grid(angles: int, shifts: int) -> Iterator[tuple[float, ...]]:
    """All (angle, shift right, shift down) with each number from `_spaced`."""
    return product(_spaced(angles), _spaced(shifts), _spaced(shifts))


def _spaced(n: int) -> list[float]:
    """n numbers from -1 to 1, evenly spaced; 0 for n = 1."""
    if n == 1:
        return [0.0]
    return [2 * k / (n - 1) - 1 for k in range(n)]
