"""How attacks transfer, as a picture: a row for each model they are made on, a column for each they meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustcli.errors import printable
from robustcli.proportions import Rate
from robustcli.reporting.cells import percent
from robustcli.reporting.figure import WIDTH, Target, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = 13  # characters; a longer name has two lines, and then loses its beginning: the end tells paths apart
_SIDE_BY_SIDE = 4  # names that have room below their columns
_ROOMY = 0.72  # inches of a square that has room for an interval


def heatmap(
    target: Target,
    names: Sequence[str],
    rates: Sequence[Sequence[Rate | None]],
    *,
    title: str,
    told: Sequence[Sequence[str]] = (),
) -> None:
    """One square per pair: its share in percent, above its 95 % Wilson interval; the diagonal is framed.

    Args:
        target: where to draw.
        names: the M models; they name the rows and the columns.
        rates: M rows of M shares; a square without one (None) stays white, with a dash.
        told: M rows of M short texts, which stand below the shares where there is room.

    Squares of many models have no room for an interval.
    Raises ValueError when the matrix is not M x M with M >= 1, ResourceError when `target` cannot be written.
    """
    size = len(names)
    if not size or len(rates) != size or any(len(row) != size for row in rates):
        raise ValueError(
            f"{size} names need {size} rows of {size} rates, got rows of {[len(row) for row in rates]}"
        )
    rows = columns = [_in_lines(name) for name in names]
    if size > _SIDE_BY_SIDE:  # numbers stand for names where columns are too narrow
        rows = [f"{name} ({k})" for k, name in enumerate(rows, 1)]
        columns = [str(k) for k in range(1, size + 1)]
    square = min(1.2, (WIDTH - 2.0) / size)
    with saved_figure(target, WIDTH, 1.9 + max(1.6, square * size), title) as figure:
        axes = figure.add_subplot()
        values = [[_value(rate) for rate in row] for row in rates]
        matrix(figure, axes, values, rows, columns)
        axes.set(xlabel="shown to", ylabel="made on")
        for s, row in enumerate(rates):
            for t, rate in enumerate(row):
                _cell(axes, s, t, rate, square, told[s][t] if told else "")


def matrix(
    figure: Figure,
    axes: Axes,
    percents: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """A coloured square for each of the percentages, NaN white, with names beside it and a scale."""
    image = axes.imshow(percents, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    bar = figure.colorbar(image, ax=axes, label="%", shrink=0.8)
    bar.outline.set_visible(False)
    longest = max(len(line) for name in columns for line in name.split("\n"))
    rotation, end = (0, "center")
    if longest * len(columns) > 40:
        rotation, end = (35, "right")
    axes.set_xticks(range(len(columns)), columns, rotation=rotation, ha=end, rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def ink_on(percent: float) -> str:
    """The colour of text on a square: dark on light, light on dark."""
    return "white" if percent > 50 else "#222222"


def _value(rate: Rate | None) -> float:
    """Percent; NaN, which is drawn white, where there is no rate."""
    if rate is None:
        return float("nan")
    return 100 * rate.value


def _cell(axes: Axes, s: int, t: int, rate: Rate | None, square: float, told: str) -> None:
    """The numbers in the square of row `s` and column `t`, which is `square` inches wide."""
    if s == t:
        _frame(axes, s)
    if rate is None:
        axes.text(t, s, "-", ha="center", va="center", color="#777777")
        return
    ink = ink_on(100 * rate.value)
    if square < _ROOMY:
        _write(axes, (t, s), percent(rate.value), ink, up=0, size=max(6.0, 15 * square))
        return
    low, high = (f"{100 * end:.0f}" for end in rate.display)
    _write(axes, (t, s), f"{percent(rate.value)} %", ink, up=6, size=10.0)
    _write(axes, (t, s), f"[{low}, {high}]", ink, up=-9, size=8.5)
    if told:
        _write(axes, (t, s), printable(told), ink, up=-21, size=min(7.0, 80 * square / len(told)))


def _frame(axes: Axes, s: int) -> None:
    """A line inside the square of row and column `s`."""
    from matplotlib.patches import Rectangle

    corner = (s - 0.47, s - 0.47)
    axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="#D55E00", linewidth=2))


def _write(axes: Axes, middle: tuple[int, int], text: str, ink: str, *, up: int, size: float) -> None:
    """`text`, `up` points above the middle of a square."""
    axes.annotate(
        text,
        middle,
        (0, up),
        textcoords="offset points",
        ha="center",
        va="center",
        color=ink,
        fontsize=size,
    )


def _in_lines(name: str) -> str:
    """A name in at most two lines."""
    text = printable(name)
    if len(text) <= _LINE:
        return text
    if len(text) > 2 * _LINE:
        text = "…" + text[1 - 2 * _LINE :]
    return f"{text[:-_LINE]}\n{text[-_LINE:]}"
