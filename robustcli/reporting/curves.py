"""Accuracy against what a sweep varies: radius, steps or restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell, Eps
from robustcli.reporting.plots import COLOURS, _accuracy_axis, _figure, _levels, _text, _unit
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
    levels = key == "eps" and norm == "linf"  # 1/255 is one step of a pixel
    x = [value * (255 if levels else 1) for value, _ in points]
    middle = [100 * rate.value for _, rate in points]
    low, high = ([100 * rate.display[k] for _, rate in points] for k in (0, 1))
    with _figure(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        axes.axhline(100 * clean.value, color="#666666", linestyle="--", linewidth=1.2, label="clean")
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(
            x,
            middle,
            color=COLOURS[0],
            marker="o",
            markersize=5,
            label="under attack, 95 % band",
            clip_on=False,
            zorder=3,
        )
        _accuracy_axis(axes)
        if key == "eps":
            axes.set_xlim(left=0)
            axes.set_xlabel("eps x 255 (linf)" if levels else f"eps ({norm}, pixels in [0, 1])")
            if levels:
                axes.secondary_xaxis("top", functions=(_unit, _levels)).set_xlabel(
                    "eps (linf, pixels in [0, 1])"
                )
        else:
            _counts(axes, x)
            axes.set_xlabel(key)
        axes.set_title(_text(title))
        axes.legend(loc="best")


def _counts(axes: Axes, x: Sequence[float]) -> None:
    """Whole numbers on the axis, each one that was measured while there is room for it."""
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
    """One line per value; `rows` as in sweep.jsonl."""
    body: list[list[Cell]] = []
    for row in rows:
        value: Cell = Eps(row["value"], row["norm"]) if key == "eps" else int(row["value"])
        success = (
            Rate(row["clean_correct"] - row["correct"], row["clean_correct"])
            if row["clean_correct"]
            else None
        )
        body.append(
            [
                value,
                Rate(row["correct"], row["n"]),
                success,
                row["passes_per_sample"],
                round(row["seconds"], 3),
            ]
        )
    note = "Attack success: of the samples that are right without an attack. Brackets: 95 % Wilson interval."
    if key == "eps":
        note += " Each radius is run on the samples that the smaller ones left standing."
    return Table(
        title,
        [
            "ball" if key == "eps" else key,
            "robust accuracy",
            "attack success",
            "passes per sample",
            "seconds",
        ],
        body,
        note,
    )
