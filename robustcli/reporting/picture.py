"""One picture of a report, with the numbers that it shows."""

from __future__ import annotations

from dataclasses import dataclass

from robustcli.reporting.tables import Table


@dataclass(frozen=True)
class Picture:
    """A PNG and the table of its data, which is written beside it as CSV.

    Args:
        name: stem of both files, lower case with underscores.
        section: of the report where it stands: "training", "verdict", "strength", "classes", "examples",
            "guard", "certificates", "transfer" or "comparison".
        title: a line above it. caption: what one sees, in one or two sentences; it is the alternative text.
        png: the file.
        table: one row per point or cell that is drawn.
    """

    name: str
    section: str
    title: str
    caption: str
    png: bytes
    table: Table
