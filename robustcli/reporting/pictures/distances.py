"""Robust accuracy against eps as minimal-norm attacks find it: one step at each sample's distance."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence

from robustcli.records.distance import DistanceRow, SampleDistance
from robustcli.regular import read_bytes
from robustcli.reporting.distances import distance_points, stairs
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import Point, Target
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import curve_table
from robustcli.reporting.pictures.lines import eps_curve

_LIMIT = 1 << 30  # bytes of distances.jsonl


def picture(dossier: Dossier) -> Picture | str | None:
    """The curves of a run with `--sweep distance`."""
    path = dossier.path / "distances.jsonl"
    swept = dossier.document.get("sweep", ())
    rows = [DistanceRow.from_json(row) for row in swept if row.get("kind") == "distance"]
    if not rows or not path.is_file():
        return None
    try:
        lines = [SampleDistance.from_json(json.loads(line)) for line in read_bytes(path, _LIMIT).splitlines()]
        distances = {row.label: [_radius(line.distance[row.label]) for line in lines] for row in rows}
        return distances_picture(distances, data=rows[0].data, norm=rows[0].norm)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"Distances: {path.name} cannot be read: {error}."


def _radius(distance: float | None) -> float:
    """A distance of distances.jsonl; inf for a sample that never broke."""
    return math.inf if distance is None else distance


def distances_picture(distances: Mapping[str, Sequence[float]], *, data: str, norm: str) -> Picture:
    """The curves of all attacks. distances: label -> distance of each sample. Raises as `distance_curve`."""
    png, title = io.BytesIO(), f"{data}: accuracy against eps"
    distance_curve(png, distances, title=title, norm=norm)
    n = len(next(iter(distances.values())))
    caption = (
        f"Share of {n:,} samples whose nearest error, as each attack finds it, is farther than eps, with its"
        " 95 % interval. An attack that finds nearer errors has the lower line."
    )
    table = curve_table(title, "eps", _curves(distances))
    return Picture("distances", "strength", "Distance to the nearest error", caption, png.getvalue(), table)


def distance_curve(
    target: Target,
    distances: Mapping[str, Sequence[float]],
    *,
    title: str = "accuracy against eps",
    norm: str = "linf",
) -> None:
    """Robust accuracy against eps as stairs, one line per name.

    Raises as `distance_points` and `lines.eps_curve`.
    """
    eps_curve(target, _curves(distances), title=title, norm=norm)


def _curves(distances: Mapping[str, Sequence[float]]) -> dict[str, list[Point]]:
    return {name: stairs(distance_points(of_name)) for name, of_name in distances.items()}
