"""The data of a picture as cells of its table: exactly what is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robustcli.errors import printable
from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell
from robustcli.reporting.figure import Point
from robustcli.reporting.tables import Table

#: Columns of an accuracy with the interval that is drawn around it.
SPREAD = ("accuracy", "low", "high", "n")


def spread(rate: Rate | None) -> list[Cell]:
    """The cells of `SPREAD`: fractions, Wilson's interval as it is drawn; empty ones without a rate."""
    if rate is None:
        return [None] * len(SPREAD)
    return [rate.value, *rate.display, rate.n]


def point(x: float, rate: Rate) -> Point:
    """A rate at x, with its Wilson interval."""
    return (x, rate.value, *rate.display)


def curve_table(title: str, x: str, curves: Mapping[str, Sequence[Point]]) -> Table:
    """One line per point of each curve. x: name of what lies below the axis."""
    lines: list[list[Cell]] = [[name, *map(float, one)] for name, points in curves.items() for one in points]
    return Table(title, ["series", x, *SPREAD[:3]], lines)


def shortened(name: str, size: int) -> str:
    """A name on one line of at most `size` characters; a longer one loses its middle."""
    text = printable(name).strip() or '""'
    if len(text) <= size:
        return text
    return f"{text[: size // 2]}…{text[-((size - 1) // 2) :]}"
