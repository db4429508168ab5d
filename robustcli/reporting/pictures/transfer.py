"""How attacks transfer between models, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, spread
from robustcli.reporting.pictures.heatmap import heatmap
from robustcli.reporting.tables import Table
from robustcli.reporting.transfer_table import several


def picture(dossier: Dossier) -> Picture | None:
    """The matrix of a transfer run."""
    rows = dossier.of(TransferRow)
    return transfer_picture(rows) if rows else None


def transfer_picture(rows: Sequence[TransferRow]) -> Picture:
    """A square for each pair. rows: the targets of the first source come first."""
    first = rows[0]
    names = list(dict.fromkeys(row.source for row in rows))
    size = len(names)
    title = f"{first.data} {first.split}: {first.attack}"
    if first.norm != "none":
        title += f", {first.norm} {format_eps(first.eps, first.norm)}"
    png, pairs = io.BytesIO(), [rows[k * size : (k + 1) * size] for k in range(size)]
    rates = [[row.rate for row in line] for line in pairs]
    told = [[_told(row) for row in line] for line in pairs]
    heatmap(png, names, rates, title=f"{title}; {first.n} jointly correct samples", told=told)
    lines: list[list[Cell]] = [
        [row.source, row.target, *spread(row.rate), row.best, row.mi_rate and row.mi_rate.value]
        for row in rows
    ]
    caption = (
        f"Share of the {first.n:,} samples that all models classify correctly, whose point made on the model"
        " of the row breaks the model of the column. On the framed diagonal an attack meets its own model."
    )
    if several(rows):
        caption += " Below: the attack that breaks most, whose share this is, and that of MI-FGSM alone."
    columns = ["made on", "shown to", "broken", *SPREAD[1:], "best attack", "MI-FGSM alone"]
    table = Table("transfer", columns, lines)
    return Picture("transfer", "transfer", "Transfer between models", caption, png.getvalue(), table)


def _told(row: TransferRow) -> str:
    """What stands below a share where the pair chose between attacks: "bsr, MI 22"."""
    if len(row.by_attack) < 2:
        return ""
    if row.mi_rate is None:
        return row.best
    return f"{row.best}, MI {100 * row.mi_rate.value:.0f}"
