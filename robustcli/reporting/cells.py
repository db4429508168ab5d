"""How one value is written: for eyes (percent, k/255) and for programs (fractions, floats)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robustcli.errors import printable
from robustcli.proportions import Rate


@dataclass(frozen=True)
class Eps:
    """A radius in pixel units of [0, 1], with the norm it is measured in."""

    value: float
    norm: str = "linf"

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.value, self.norm)}"


Cell = Rate | Eps | str | int | float | None


def format_eps(eps: float, norm: str = "linf") -> str:
    """``8/255 (0.03137)`` for linf, where 1/255 is one step of a pixel; the plain number for l2 and l1."""
    if norm != "linf" or not eps:
        return f"{eps:.4g}"
    levels = eps * 255
    if abs(levels - round(levels)) < 1e-6:
        levels = round(levels)
    return f"{levels:.4g}/255 ({eps:.4g})"


def format_rate(rate: Rate, *, interval: bool = True) -> str:
    """``86.4 % [83.1, 89.2] of 450``: percent, the 95 % Wilson interval, n."""
    low, high = rate.display
    return f"{percent(rate.value)} %" + (
        f" [{percent(low)}, {percent(high)}] of {rate.n}" if interval else ""
    )


def percent(fraction: float) -> str:
    """One decimal; never 100.0 for less than all or 0.0 for more than nothing."""
    shown = f"{100 * fraction:.1f}"
    if fraction < 1 and shown == "100.0":
        return ">99.9"
    return "<0.1" if fraction > 0 and shown == "0.0" else shown


def shown(cell: Cell) -> str:
    """For a person."""
    if cell is None:
        return "-"
    if isinstance(cell, Rate):
        return format_rate(cell)
    if isinstance(cell, float):
        return f"{cell:.4g}" if math.isfinite(cell) else str(cell)
    return printable(str(cell))


def tall(cell: Cell) -> str:
    """As `shown`, on a narrow line for each fact: three rates side by side fit 80 columns."""
    if isinstance(cell, Rate):
        return shown(cell).replace(" [", "\n[").replace("] ", "]\n")
    return shown(cell).replace(" (", "\n(") if isinstance(cell, Eps) else shown(cell)


def raw(cell: Cell) -> str:
    """For a program: full precision, an empty string for None. A text that a spreadsheet would run is quoted with '."""
    if cell is None:
        return ""
    if isinstance(cell, (Rate, Eps)):
        return repr(float(cell.value))
    if isinstance(cell, (int, float)):
        return repr(float(cell)) if isinstance(cell, float) else str(cell)  # numpy's own repr names its type
    text = printable(cell)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
