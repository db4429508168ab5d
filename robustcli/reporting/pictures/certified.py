"""Certified accuracy against the radius, with the accuracy under attack of the same samples."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.reporting.cells import format_eps, percent
from robustcli.reporting.distances import distance_points, stairs
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import Point, Target
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import curve_table, point
from robustcli.reporting.pictures.lines import eps_curve


def picture(dossier: Dossier) -> Picture | None:
    """The curves of a run of `certify`."""
    rows = dossier.of(CertifyRow)
    samples = [row for row in dossier.samples if isinstance(row, CertificateRow)] if rows else []
    return certified_picture(rows, samples) if samples else None


def certified_picture(rows: Sequence[CertifyRow], samples: Sequence[CertificateRow]) -> Picture:
    """Two lines: what is proven, and what no attack broke. Arguments as of `certified_curve`."""
    png, last = io.BytesIO(), rows[-1]
    title = f"{last.data}: {last.model}"
    certified_curve(png, rows, samples, title=title)
    caption = (
        f"Share of {last.n:,} samples that {last.method} proves within each radius, and share that no attack"
        f" broke there; the truth lies between the lines. At {last.norm} {format_eps(last.eps, last.norm)}:"
        f" {percent(last.certified_acc.value)} % proven, {percent(last.robust_acc.value)} % unbroken."
    )
    table = curve_table(title, "eps", _curves(rows, samples))
    return Picture(
        "certified", "certificates", "Certified accuracy against the radius", caption, png.getvalue(), table
    )


def certified_curve(
    target: Target, rows: Sequence[CertifyRow], samples: Sequence[CertificateRow], *, title: str
) -> None:
    """Two lines: what is proven, and what no attack broke. The truth lies between them.

    Args:
        target: where to draw.
        rows: ascending radii, the clean images first.
        samples: of the same run.
        title: what was measured.

    Raises as `lines.eps_curve`.
    """
    eps_curve(target, _curves(rows, samples), title=title, norm=rows[-1].norm)


def _curves(rows: Sequence[CertifyRow], samples: Sequence[CertificateRow]) -> Mapping[str, Sequence[Point]]:
    """Name -> points. A method that proves a radius of its own for each sample gives stairs."""
    last, asked = rows[-1], {row.eps for row in rows}
    proven = [point(row.eps, row.certified_acc) for row in rows]
    radii = [sample.radius * sample.certified(0.0) for sample in samples]
    if not asked.issuperset(radii):
        proven = stairs(distance_points(radii))
    standing = [point(row.eps, row.robust_acc) for row in rows]
    attacks = ", ".join(last.attacks) or "attack"
    return {f"under {attacks}": standing, f"certified by {last.method}": proven}
