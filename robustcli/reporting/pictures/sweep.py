"""A sweep as a picture: accuracy against what it varies (radius, steps or restarts)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustcli.proportions import Rate
from robustcli.records.sweep import SweepRow
from robustcli.reporting.cells import Cell, format_eps, percent
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import (
    COLOURS,
    WIDTH,
    Target,
    accuracy_axis,
    eps_axis,
    eps_scale,
    saved_figure,
)
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, spread
from robustcli.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROWS = 10.0  # values that span more than this factor are drawn on a logarithmic axis
_MANY = 12  # more values than this are not all written below the axis
_SECTIONS = {"eps": "verdict"}  # key -> section of a report; what attacks are given shows their strength
_WORDS = {"eps": "eps", "steps": "attack steps", "restarts": "restarts of the attack"}


def picture(dossier: Dossier) -> Picture | None:
    """The curve of a run with a sweep over eps, steps or restarts."""
    rows = dossier.of(SweepRow)
    return sweep_picture(rows) if rows else None


def sweep_picture(rows: Sequence[SweepRow]) -> Picture:
    """The curve of a sweep, values ascending. Raises ValueError without rows."""
    key, total, title = rows[0].key, rows[0].total, sweep_title(rows)
    png, points = io.BytesIO(), [(row.value, Rate(row.total.correct, row.total.n)) for row in rows]
    sweep_curve(png, key, points, clean=total.clean, title=title, norm=total.norm)
    lines: list[list[Cell]] = [["clean", None, *spread(total.clean)]]
    lines += [["worst case", value, *spread(rate)] for value, rate in points]
    return Picture(
        f"sweep_{key}",
        _SECTIONS.get(key, "strength"),
        f"Accuracy against {_WORDS.get(key, key)}",
        _caption(key, rows),
        png.getvalue(),
        Table(title, ["series", key, *SPREAD], lines),
    )


def sweep_title(rows: Sequence[SweepRow]) -> str:
    """What was swept: data and attacks, and the ball unless it is what varies."""
    total = rows[0].total
    title = f"{total.data}: {total.label}"
    if rows[0].key != "eps":
        title += f", {total.norm} {format_eps(total.eps, total.norm)}"
    return title


def _caption(key: str, rows: Sequence[SweepRow]) -> str:
    first, last = rows[0].total.robust, rows[-1].total.robust
    assert first is not None and last is not None
    words = (
        f"Accuracy over {rows[0].total.n:,} samples in the worst case of all attacks, with its 95 % interval:"
        f" {percent(first.value)} % at {_value(rows[0])}, {percent(last.value)} % at {_value(rows[-1])}."
    )
    if key == "eps":
        return f"{words} Dashed: without an attack."
    return f"{words} A flat end says that more of it does not help the attack."


def _value(row: SweepRow) -> str:
    """A value with its unit."""
    if row.key == "eps":
        return f"{row.total.norm} {format_eps(row.value, row.total.norm)}"
    return f"{row.value:g} {row.key}"


def sweep_curve(
    target: Target,
    key: str,
    points: Sequence[tuple[float, Rate]],
    *,
    clean: Rate,
    title: str,
    norm: str = "linf",
) -> None:
    """Accuracy with its 95 % Wilson band against the swept value; a dashed line for the clean accuracy.

    Args:
        target: where to draw.
        key: "eps" (pixel units of [0, 1]), or a count such as "steps".
        points: (value, right under attack of all samples), values ascending.
        clean: right without an attack.
        norm: of the ball, for eps.

    Raises ValueError without points, ResourceError when `target` cannot be written.
    """
    if not points:
        raise ValueError("no points to draw")
    x = [value for value, _ in points]
    if key == "eps":
        x = [eps * eps_scale(norm) for eps in x]
    with saved_figure(target, WIDTH, 3.7, title) as figure:
        axes = figure.add_subplot()
        axes.axhline(100 * clean.value, color="#666666", linestyle="--", linewidth=1.2, label="clean")
        _band(axes, x, [rate for _, rate in points])
        accuracy_axis(axes)
        if key == "eps":
            eps_axis(axes, norm)
        else:
            _counts(axes, x)
            axes.set_xlabel(_WORDS.get(key, key))
        axes.legend(loc="best")


def _band(axes: Axes, x: Sequence[float], rates: Sequence[Rate]) -> None:
    """The accuracies as a line, their intervals as a band around it, in percent."""
    low, high = ([100 * rate.display[k] for rate in rates] for k in (0, 1))
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(
        x,
        [100 * rate.value for rate in rates],
        color=COLOURS[0],
        marker="o",
        markersize=5,
        label="worst case of all attacks, 95 % band",
        clip_on=False,
        zorder=3,
    )


def _counts(axes: Axes, x: Sequence[float]) -> None:
    """Whole numbers below the axis: each count that was measured, while there is room for it."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    if x[-1] > _GROWS * x[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(x) <= _MANY:
        axes.set_xticks(list(x))
    elif axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
