"""A matrix of shares as a picture: rows are sources, columns targets."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.proportions import Rate
from robustcli.reporting.cells import percent
from robustcli.reporting.plots import _figure, _text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONG = 28  # longer names lose their beginning: the end tells paths apart
_CELL, _LETTER = 1.05, 0.08  # inches: a square, a letter of a name


def heatmap(
    path: Path,
    names: Sequence[str],
    rates: Sequence[Sequence[Rate | None]],
    *,
    title: str,
    rows: str = "made on",
    columns: str = "shown to",
) -> None:
    """One square per pair: its share in percent above its 95 % Wilson interval; the diagonal is framed.

    Args:
        path: where to write, atomically; its folder is made.
        names: of the M rows, and of the M columns.
        rates: M rows of M shares; None is left blank.
        rows, columns: what a row and a column stand for.

    Raises ValueError when the matrix is not M x M with M >= 1, ResourceError when `path` cannot be written.
    """
    size = len(names)
    if not size or len(rates) != size or any(len(row) != size for row in rates):
        raise ValueError(
            f"{size} names need {size} rows of {size} rates, got rows of {[len(row) for row in rates]}"
        )
    shown = [_short(name) for name in names]
    longest = max(map(len, shown))
    slanted = longest > 9
    width = max(5.6, 2.2 + _LETTER * longest + _CELL * size)
    with _figure(path, width, max(3.8, 1.4 + _LETTER * longest * 0.5 * slanted + _CELL * size)) as figure:
        axes = figure.add_subplot()
        values = [[float("nan") if rate is None else 100 * rate.value for rate in row] for row in rates]
        image = axes.imshow(values, cmap="viridis_r", vmin=0, vmax=100, aspect="auto")
        bar = figure.colorbar(image, ax=axes, label="%", shrink=0.8)
        bar.outline.set_visible(False)
        axes.set_xticks(
            range(size), shown, rotation=30 if slanted else 0, ha="right" if slanted else "center"
        )
        axes.set_yticks(range(size), shown)
        axes.set(xlabel=columns, ylabel=rows)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle(textwrap.fill(_text(title), int(12 * width)), fontsize=10)
        for s, row in enumerate(rates):
            for t, rate in enumerate(row):
                _cell(axes, s, t, rate)


def _cell(axes: Axes, s: int, t: int, rate: Rate | None) -> None:
    """The numbers of one square, dark on light and light on dark."""
    from matplotlib.patches import Rectangle

    if s == t:
        axes.add_patch(
            Rectangle((t - 0.47, s - 0.47), 0.94, 0.94, fill=False, edgecolor="#D55E00", linewidth=2)
        )
    if rate is None:
        axes.text(t, s, "-", ha="center", va="center", color="#777777")
        return
    ink = "white" if rate.value > 0.5 else "#222222"
    low, high = (f"{100 * end:.0f}" for end in rate.display)
    for text, up, fontsize in ((f"{percent(rate.value)} %", 6, 11.0), (f"[{low}, {high}]", -9, 8.5)):
        axes.annotate(
            text,
            (t, s),
            (0, up),
            textcoords="offset points",
            ha="center",
            va="center",
            color=ink,
            fontsize=fontsize,
        )


def _short(name: str) -> str:
    text = _text(name)
    return text if len(text) <= _LONG else "…" + text[1 - _LONG :]
