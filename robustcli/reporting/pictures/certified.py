"""Certified accuracy against the radius, with the accuracy under attack of the same samples."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.reporting.distances import distance_points, stairs
from robustcli.reporting.figure import Point, Target
from robustcli.reporting.pictures.lines import eps_curve


def certified_curve(
    target: Target, rows: Sequence[CertifyRow], samples: Sequence[CertificateRow], *, title: str
) -> None:
    """Two lines: what is proven, and what no attack broke. The truth lies between them.

    Args:
        target: where to draw.
        rows: ascending radii, the clean images first.
        samples: of the same run.
        title: what was measured.

    A method that proves a radius of its own for each sample gives stairs, one step at each of them. Raises as
    `plots.eps_curve`.
    """
    last, asked = rows[-1], {row.eps for row in rows}
    proven: list[Point] = [(row.eps, row.certified_acc.value, *row.certified_acc.display) for row in rows]
    radii = [sample.radius * sample.certified(0.0) for sample in samples]
    if not asked.issuperset(radii):
        proven = stairs(distance_points(radii))
    standing: list[Point] = [(row.eps, row.robust_acc.value, *row.robust_acc.display) for row in rows]
    attacks = ", ".join(last.attacks) or "attack"
    curves = {f"under {attacks}": standing, f"certified by {last.method}": proven}
    eps_curve(target, curves, title=title, norm=last.norm)
