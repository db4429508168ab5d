"""What minimal-norm attacks find: each sample's distance to its nearest error, as a curve and as a table."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell, unit_of
from robustcli.reporting.figure import Point
from robustcli.reporting.tables import Table

_QUANTILES = {"first quartile": 0.25, "median": 0.5, "third quartile": 0.75}


def distance_points(distances: Sequence[float]) -> list[Point]:
    """(eps, #{i: d_i > eps} / n, low, high) at eps = 0 and at each finite distance, with the Wilson interval.

    The second number is the robust accuracy from this radius to the next point.

    distances: d_i >= 0 per sample, pixel units of [0, 1]; 0 = wrong from the start, inf = never broken.
    Raises ValueError without a distance, or for a negative or NaN one.
    """
    ordered = _ordered(distances)
    points: list[Point] = []
    for eps in sorted({0.0, *filter(math.isfinite, ordered)}):
        rate = Rate(len(ordered) - bisect_right(ordered, eps), len(ordered))
        points.append((eps, rate.value, *rate.display))
    return points


def distance_quantile(distances: Sequence[float], share: float) -> float:
    """d_(ceil(share * n)): the smallest radius that breaks at least this share of the samples.

    It is inf when no radius does. It is one of the distances, never an average of two, because there is no
    middle between a number and inf.
    Raises ValueError for a share outside (0, 1], and as `distance_points`.
    """
    ordered = _ordered(distances)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return ordered[math.ceil(share * len(ordered) - 1e-9) - 1]  # 0.07 * 100 is a little more than 7


def distance_table(
    distances: Mapping[str, Sequence[float]],
    *,
    norm: str = "linf",
    title: str = "distance to the nearest error",
) -> Table:
    """One line per name: the share that was broken at any distance, and the quartiles over all samples.

    Raises as `distance_points`.
    """
    rows: list[list[Cell]] = []
    for name, of_name in distances.items():
        ordered = _ordered(of_name)
        broken = Rate(sum(map(math.isfinite, ordered)), len(ordered))
        rows.append([name, broken, *(distance_quantile(ordered, share) for share in _QUANTILES.values())])
    note = (
        f"Quartiles: {norm} radius in {unit_of(norm)} that breaks a quarter, half, three quarters "
        "of all samples; inf: none does."
    )
    return Table(title, ["attack", "broken", *_QUANTILES], rows, note)


def _ordered(distances: Sequence[float]) -> list[float]:
    """Checked and sorted."""
    if not len(distances):
        raise ValueError("no distances")
    for d in distances:
        if not d >= 0:
            raise ValueError(f"a distance is a number >= 0 or inf, got {d}")
    return sorted(map(float, distances))


def stairs(points: Sequence[Point]) -> list[Point]:
    """The points with a corner before each: accuracy stays as it is until the next distance."""
    first, *later = points
    corners = [(point[0], *before[1:]) for before, point in zip(points, later, strict=False)]
    return [first, *chain.from_iterable(zip(corners, later, strict=True))]
