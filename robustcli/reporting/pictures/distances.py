"""Robust accuracy against eps as minimal-norm attacks find it: one step at each sample's distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robustcli.reporting.distances import distance_points, stairs
from robustcli.reporting.figure import Target
from robustcli.reporting.pictures.lines import eps_curve


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
    curves = {name: stairs(distance_points(of_name)) for name, of_name in distances.items()}
    eps_curve(target, curves, title=title, norm=norm)
