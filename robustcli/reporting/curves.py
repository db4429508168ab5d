"""A sweep as a picture and as a table: accuracy against what it varies (radius, steps or restarts)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell, Eps, share_of
from robustcli.reporting.figure import COLOURS, accuracy_axis, eps_axis, eps_scale, plain, saved_figure
from robustcli.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROWS = 10.0  # values that span more than this factor are drawn on a logarithmic axis
_MANY = 12  # more values than this are not all written below the axis


def sweep_curve(
    path: Path, key: str, points: Sequence[tuple[float, Rate]], *, clean: Rate, title: str, norm: str = "linf"
) -> None:
    """Accuracy with its 95 % Wilson band against the swept value; a dashed line for the clean accuracy.

    Args:
        path: where to write, atomically; its folder is made.
        key: "eps" (pixel units of [0, 1]), or a count such as "steps".
        points: (value, right under attack of all samples), values ascending.
        clean: right without an attack.
        norm: of the ball, for eps.

    Raises ValueError without points, ResourceError when `path` cannot be written.
    """
    if not points:
        raise ValueError("no points to draw")
    x = [value for value, _ in points]
    if key == "eps":
        x = [eps * eps_scale(norm) for eps in x]
    with saved_figure(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        axes.axhline(100 * clean.value, color="#666666", linestyle="--", linewidth=1.2, label="clean")
        _band(axes, x, [rate for _, rate in points])
        accuracy_axis(axes)
        if key == "eps":
            eps_axis(axes, norm)
        else:
            _counts(axes, x)
            axes.set_xlabel(key)
        axes.set_title(plain(title))
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
        label="under attack, 95 % band",
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
