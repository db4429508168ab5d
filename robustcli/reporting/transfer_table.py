"""How images carry over from model to model, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import Cell
from robustcli.reporting.tables import Table


def several(rows: Sequence[TransferRow]) -> bool:
    """Whether the pairs chose between attacks."""
    return any(len(row.by_attack) > 1 for row in rows)


def matrix_table(rows: Sequence[TransferRow], title: str, *more: list[Cell]) -> Table:
    """One line per source, one column per target; `more`: lines below."""
    first, targets = rows[0], list(dict.fromkeys(row.target for row in rows))
    rates = {(row.source, row.target): row.rate for row in rows}
    lines: list[list[Cell]] = [
        [source, *(rates.get((source, target)) for target in targets)]
        for source in dict.fromkeys(row.source for row in rows)
    ]
    best = " of the attack that breaks most," if several(rows) else ""
    note = (
        f"Share broken{best} of the {first.n} samples (of {first.samples}) that all models classify right."
        " The diagonal is white-box. Brackets: 95 % Wilson interval."
    )
    return Table(title, ["made on", *(f"shown to {name}" for name in targets)], [*lines, *more], note)


def pair_table(rows: Sequence[TransferRow]) -> Table | None:
    """For each pair the best attack, and what MI-FGSM alone would have said; None where one attack ran."""
    if not several(rows):
        return None
    lines: list[list[Cell]] = [[row.source, row.target, row.rate, row.best, row.mi_rate] for row in rows]
    columns = ["made on", "shown to", "broken", "best attack", "MI-FGSM alone"]
    note = (
        "The best attack of a pair is known once its images were tried: an attacker would have to guess it."
    )
    return Table("transfer by pair", columns, lines, note)
