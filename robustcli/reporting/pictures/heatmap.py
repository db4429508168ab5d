"""How attacks transfer, as a picture: a row for each model they are made on, a column for each they meet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustcli.proportions import Rate
from robustcli.reporting.cells import percent
from robustcli.reporting.figure import Target, plain, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONG = 28  # longer names lose their beginning: the end tells paths apart
_LEVEL = 9  # names longer than this are written at a slant
_CELL, _LETTER = 1.05, 0.08  # inches: a square, a letter of a name


def heatmap(
    target: Target, names: Sequence[str], rates: Sequence[Sequence[Rate | None]], *, title: str
) -> None:
    """One square per pair: its share in percent above its 95 % Wilson interval; the diagonal is framed.

    Args:
        target: where to draw.
        names: the M models; they name the rows and the columns.
        rates: M rows of M shares; a square without one (None) stays white, with a dash.

    Raises ValueError when the matrix is not M x M with M >= 1, ResourceError when `target` cannot be written.
    """
    size = len(names)
    if not size or len(rates) != size or any(len(row) != size for row in rates):
        raise ValueError(
            f"{size} names need {size} rows of {size} rates, got rows of {[len(row) for row in rates]}"
        )
    labels = [_shortened(name) for name in names]
    longest = max(map(len, labels))
    slanted = longest > _LEVEL
    width = max(5.6, 2.2 + _LETTER * longest + _CELL * size)
    height = max(3.8, 1.4 + _LETTER * longest * 0.5 * slanted + _CELL * size)
    with saved_figure(target, width, height) as figure:
        axes = figure.add_subplot()
        values = [[_value(rate) for rate in row] for row in rates]
        image = axes.imshow(values, cmap="viridis_r", vmin=0, vmax=100, aspect="auto")
        bar = figure.colorbar(image, ax=axes, label="%", shrink=0.8)
        bar.outline.set_visible(False)
        _name_axes(axes, labels, slanted)
        figure.suptitle(textwrap.fill(plain(title), int(12 * width)), fontsize=10)
        for s, row in enumerate(rates):
            for t, rate in enumerate(row):
                _cell(axes, s, t, rate)


def _value(rate: Rate | None) -> float:
    """Percent; NaN, which is drawn white, where there is no rate."""
    if rate is None:
        return float("nan")
    return 100 * rate.value


def _name_axes(axes: Axes, labels: Sequence[str], slanted: bool) -> None:
    places = range(len(labels))
    rotation, end = (30, "right") if slanted else (0, "center")
    axes.set_xticks(places, labels, rotation=rotation, ha=end)
    axes.set_yticks(places, labels)
    axes.set(xlabel="shown to", ylabel="made on")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cell(axes: Axes, s: int, t: int, rate: Rate | None) -> None:
    """The numbers in the square of row `s` and column `t`: dark on light, light on dark."""
    if s == t:
        _frame(axes, s)
    if rate is None:
        axes.text(t, s, "-", ha="center", va="center", color="#777777")
        return
    low, high = (f"{100 * end:.0f}" for end in rate.display)
    ink = "white" if rate.value > 0.5 else "#222222"
    _write(axes, (t, s), f"{percent(rate.value)} %", ink, up=6, size=11.0)
    _write(axes, (t, s), f"[{low}, {high}]", ink, up=-9, size=8.5)


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


def _shortened(name: str) -> str:
    text = plain(name)
    if len(text) <= _LONG:
        return text
    return "…" + text[1 - _LONG :]
