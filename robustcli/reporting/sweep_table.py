"""A sweep as a table: accuracy against what it varies (radius, steps or restarts)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell, Eps, share_of
from robustcli.reporting.tables import Table


def sweep_table(key: str, rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """One line per value of the key; `rows` as in sweep.jsonl."""
    note = "Attack success: of the samples that are right without an attack. Brackets: 95 % Wilson interval."
    value_title = key
    if key == "eps":
        value_title = "ball"
        note += " Each radius is run on the samples that the smaller ones left standing."
    columns = [value_title, "robust accuracy", "attack success", "passes per sample", "seconds"]
    return Table(title, columns, [_sweep_line(key, row) for row in rows], note)


def _sweep_line(key: str, row: Mapping[str, Any]) -> list[Cell]:
    value: Cell = Eps(row["value"], row["norm"]) if key == "eps" else int(row["value"])
    broken = row["clean_correct"] - row["correct"]
    return [
        value,
        Rate(row["correct"], row["n"]),
        share_of(broken, row["clean_correct"]),
        row["passes_per_sample"],
        round(row["seconds"], 3),
    ]
