"""What minimal-norm attacks find: how far each sample is from its nearest error, as a curve and as a table."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell
from robustcli.reporting.plots import Point, eps_curve
from robustcli.reporting.tables import Table

_QUANTILES = {"first quartile": 0.25, "median": 0.5, "third quartile": 0.75}


def distance_points(distances: Sequence[float]) -> list[Point]:
    """(eps, #{i: d_i > eps} / n, low, high) at 0 and at each finite distance: the robust accuracy from there to the next point; Wilson.

    distances: d_i >= 0 per sample, pixel units of [0, 1]; 0 = wrong from the start, inf = never broken.
    Raises ValueError without a distance, or for a negative or NaN one.
    """
    ordered = _ordered(distances)
    points: list[Point] = []
    for eps in sorted({0.0, *(d for d in ordered if math.isfinite(d))}):
        rate = Rate(len(ordered) - bisect_right(ordered, eps), len(ordered))
        points.append((eps, rate.value, *rate.display))
    return points


def distance_quantile(distances: Sequence[float], share: float) -> float:
    """d_(ceil(share * n)), the smallest radius that breaks at least this share of the samples; inf when no radius does.

    An order statistic, never an average of two: between a number and inf there is no middle. Errors as `distance_points`;
    ValueError also for a share outside (0, 1].
    """
    ordered = _ordered(distances)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return ordered[math.ceil(share * len(ordered) - 1e-9) - 1]  # 0.07 * 100 is a little more than 7


def distance_curve(
    path: Path,
    distances: Mapping[str, Sequence[float]],
    *,
    title: str = "accuracy against eps",
    norm: str = "linf",
) -> None:
    """PNG: robust accuracy against eps as stairs, one line per name. Errors as `distance_points` and `plots.eps_curve`."""
    eps_curve(
        path,
        {name: _stairs(distance_points(of_name)) for name, of_name in distances.items()},
        title=title,
        norm=norm,
    )


def distance_table(
    distances: Mapping[str, Sequence[float]],
    *,
    norm: str = "linf",
    title: str = "distance to the nearest error",
) -> Table:
    """One line per name: the share that was broken at any distance, and quartiles over all samples. Errors as `distance_points`."""
    rows: list[list[Cell]] = []
    for name, of_name in distances.items():
        ordered = _ordered(of_name)
        broken = Rate(sum(map(math.isfinite, ordered)), len(ordered))
        rows.append([name, broken, *(distance_quantile(ordered, share) for share in _QUANTILES.values())])
    note = f"Quartiles: {norm} radius in pixel units of [0, 1] that breaks a quarter, half, three quarters of all samples; inf: none does."
    return Table(title, ["attack", "broken", *_QUANTILES], rows, note)


def _ordered(distances: Sequence[float]) -> list[float]:
    """Sorted and checked."""
    if not len(distances):
        raise ValueError("no distances")
    for d in distances:
        if not d >= 0:
            raise ValueError(f"a distance is a number >= 0 or inf, got {d}")
    return sorted(map(float, distances))


def _stairs(points: Sequence[Point]) -> list[Point]:
    """The points with a corner before each: accuracy stays as it is until the next distance."""
    corners = [(after[0], *before[1:]) for before, after in zip(points, points[1:], strict=False)]
    return [points[0], *(point for pair in zip(corners, points[1:], strict=True) for point in pair)]
