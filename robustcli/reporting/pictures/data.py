"""The data of a picture as cells of its table: exactly what is drawn."""

from __future__ import annotations

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell

#: Columns of an accuracy with the interval that is drawn around it.
SPREAD = ("accuracy", "low", "high", "n")


def spread(rate: Rate | None) -> list[Cell]:
    """The cells of `SPREAD`: fractions, Wilson's interval as it is drawn; empty ones without a rate."""
    if rate is None:
        return [None] * len(SPREAD)
    return [rate.value, *rate.display, rate.n]
