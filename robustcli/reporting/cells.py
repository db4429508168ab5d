"""How one value is written: for people (percent, k/255) and for programs (fractions, full precision)."""

from __future__ import annotations

from dataclasses import dataclass

from robustcli.config.threats import UNION, is_union
from robustcli.errors import printable
from robustcli.proportions import Rate

_DIGITS = 64  # of a whole SHA-256


@dataclass(frozen=True)
class Eps:
    """A radius in pixel units of [0, 1], with the norm it is measured in."""

    value: float
    norm: str = "linf"

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.value, self.norm)}"


Cell = Rate | Eps | str | int | float | None


def format_eps(eps: float, norm: str = "linf") -> str:
    """``8/255 (0.03137)`` for linf, where 1/255 is one step of a pixel; ``5 px`` for l0; else a number.

    A union of balls, whose norm names the radii, is ``(union)``.
    """
    if is_union(norm):
        return f"({UNION})"
    if norm == "l0":
        return f"{eps:.10g} px"
    if norm != "linf" or not eps:
        return f"{eps:.4g}"
    levels = eps * 255
    if abs(levels - round(levels)) < 1e-6:
        levels = round(levels)
    return f"{levels:.4g}/255 ({eps:.4g})"


def unit_of(norm: str) -> str:
    """What a radius of this norm is counted in."""
    if norm == "l0":
        return "pixels"
    return "pixel units of [0, 1]"


def format_rate(rate: Rate) -> str:
    """``86.4 % [83.1, 89.2] of 450``: percent, the 95 % Wilson interval, n."""
    low, high = rate.display
    return f"{percent(rate.value)} % [{percent(low)}, {percent(high)}] of {rate.n}"


def percent(fraction: float) -> str:
    """One decimal; never 100.0 for less than all, never 0.0 for more than nothing."""
    rounded = f"{100 * fraction:.1f}"
    if rounded == "100.0" and fraction < 1:
        return ">99.9"
    if rounded == "0.0" and fraction > 0:
        return "<0.1"
    return rounded


def amount(n: int, noun: str) -> str:
    """``1 alarm``, ``2 alarms``; the noun takes an s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def digest_name(name: str, value: str) -> str:
    """The name of a hash; says so where only its beginning is recorded."""
    return name if len(value) >= _DIGITS else f"{name} (first {len(value)} digits)"


def share_of(k: int, n: int) -> Rate | None:
    """k of n; None when n is 0."""
    return Rate(k, n) if n else None


def shown(cell: Cell) -> str:
    """The cell as a person reads it, on one line."""
    if cell is None:
        return "-"
    if isinstance(cell, Rate):
        return format_rate(cell)
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return printable(str(cell))


def tall(cell: Cell) -> str:
    """As `shown`, but broken into short lines: columns get narrow, and three rates fit into 80 characters."""
    if isinstance(cell, Rate):
        return shown(cell).replace(" [", "\n[").replace("] ", "]\n")
    if isinstance(cell, Eps):
        return shown(cell).replace(" (", "\n(")
    return shown(cell)


def raw(cell: Cell) -> str:
    """The cell as a program reads it: full precision, an empty string for None.

    A text that a spreadsheet would take for a formula gets a ' in front.
    """
    if cell is None:
        return ""
    if isinstance(cell, (Rate, Eps)):
        return repr(float(cell.value))
    if isinstance(cell, float):
        return repr(float(cell))  # numpy's own repr names its type
    if isinstance(cell, int):
        return str(cell)
    text = printable(cell)
    if text.startswith(("=", "+", "-", "@")):
        return f"'{text}"
    return text
