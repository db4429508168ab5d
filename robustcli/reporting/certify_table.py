"""What is proven, beside what attacks break of the same samples, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.proportions import Rate
from robustcli.records.certify import STATUSES, CertificateRow, CertifyRow
from robustcli.reporting.cells import Cell, Eps
from robustcli.reporting.tables import Table

_WILSON = "Brackets: 95 % Wilson interval."


def certify_table(rows: Sequence[CertifyRow]) -> Table:
    """One line per radius: certified accuracy, and accuracy under attack, of the same samples."""
    lines: list[list[Cell]] = [
        [Eps(row.eps, row.norm) if row.eps else "clean", row.certified_acc, row.robust_acc] for row in rows
    ]
    attacks = ", ".join(rows[-1].attacks) or "no attack"
    if rows[-1].method == "cascade":
        attacks += " or the attacks of the cascade"
    note = (
        f"Certified: proven by {rows[-1].method}. Robust: no point was found by {attacks}. "
        f"Both: of all samples. The truth lies between them. {_WILSON}"
    )
    return Table("certified", ["radius", "certified accuracy", "robust accuracy"], lines, note)


def status_table(samples: Sequence[CertificateRow], eps: float, norm: str) -> Table:
    """One line for each status at the threat's radius and each stage that gave it, with seconds of proof."""
    groups: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        groups.setdefault((sample.status, sample.stage), []).append(sample.seconds)
    lines: list[list[Cell]] = []
    for status, stage in sorted(groups, key=lambda pair: (STATUSES.index(pair[0]), pair[1])):
        seconds = groups[status, stage]
        mean = round(sum(seconds) / len(seconds), 4)
        lines.append([status, stage, Rate(len(seconds), len(samples)), mean])
    columns = ["status", "by", "samples", "seconds of proof each"]
    return Table(f"samples at {Eps(eps, norm)}", columns, lines)


def checked_table(checked: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Table:
    """One line per certificate that holds; rows as `jobs.certify.check` gives them."""
    lines: list[list[Cell]] = [
        [row["id"], classes[row["label"]], Eps(row["radius"], row["norm"]), row["method"]] for row in checked
    ]
    note = "Computed again with this model and these images: each of them holds."
    return Table("certificates", ["sample", "class", "radius", "method"], lines, note)
