"""Clean and robust accuracy per class: each class where they are few, else the weakest and how all spread."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from robustcli.proportions import Rate
from robustcli.records.eval import EvalRow
from robustcli.reporting.cells import Cell, percent
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import COLOURS, WIDTH, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, shortened, spread
from robustcli.reporting.pictures.lines import bars_of
from robustcli.reporting.tables import Table
from robustcli.reporting.weakest import weakest_classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 20  # classes; of more, this many are named
_LONG = 18  # characters of a name
_BINS = 10


class Line(NamedTuple):
    """A class, and its accuracies."""

    name: str
    clean: Rate
    robust: Rate


def picture(dossier: Dossier) -> Picture | str | None:
    """The classes of an evaluation, the weakest first."""
    clean, worst = dossier.eval_row("clean"), dossier.eval_row("worst")
    if clean is None or worst is None:
        return None
    lines = _lines(clean, worst)
    if not lines:
        return "Accuracy per class: the records have none."
    cells: list[list[Cell]] = [
        [name, "named" if k < _FEW else "distribution", *spread(before), *spread(after)]
        for k, (name, before, after) in enumerate(lines)
    ]
    columns = ["class", "drawn", *(f"{kind} {part}" for kind in ("clean", "robust") for part in SPREAD)]
    title = f"{worst.data}: accuracy per class, weakest first"
    table = Table(title, columns, cells)
    return Picture("classes", "classes", "Accuracy per class", _caption(lines), _png(lines, title), table)


def _lines(clean: EvalRow, worst: EvalRow) -> list[Line]:
    return [
        Line(name, Rate(*clean.per_class[name]), Rate(*worst.per_class[name]))
        for name in weakest_classes(clean, worst)
        if clean.per_class.get(name, (0, 0))[1]
    ]


def _caption(lines: Sequence[Line]) -> str:
    (weakest, _, low), (strongest, _, high) = lines[0], lines[-1]
    words = "Clean and robust accuracy of each class with 95 % intervals, the weakest first"
    if len(lines) > _FEW:
        words = (
            f"The {_FEW} weakest of {len(lines):,} classes, with 95 % intervals; below, how many classes have"
            " which accuracy"
        )
    ends = f"{shortened(weakest, 40)}, {percent(low.value)} %"
    if len(lines) > 1:
        ends = f"robust accuracy goes from {ends}, to {shortened(strongest, 40)}, {percent(high.value)} %"
    return f"{words}: {ends}."


def _png(lines: Sequence[Line], title: str) -> bytes:
    png, shown = io.BytesIO(), lines[:_FEW]
    heights = [0.5 + 0.3 * len(shown)]
    if len(lines) > _FEW:
        heights.append(2.0)
    with saved_figure(png, WIDTH, 1.0 + sum(heights), title) as figure:
        panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        _dots(panels[0], shown)
        if len(lines) > _FEW:
            _distribution(panels[1], lines)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return png.getvalue()


def _kinds(lines: Sequence[Line]) -> dict[str, list[Rate]]:
    return {"clean": [line.clean for line in lines], "robust": [line.robust for line in lines]}


def _dots(axes: Axes, lines: Sequence[Line]) -> None:
    """A line for each class: its clean accuracy just above its robust one."""
    for k, (kind, rates) in enumerate(_kinds(lines).items()):
        values = [100 * rate.value for rate in rates]
        places = [place + (-0.15, 0.15)[k] for place in range(len(lines))]
        axes.errorbar(
            values, places, xerr=bars_of(rates), fmt="os"[k], color=COLOURS[k], markersize=5, capsize=2,
            linewidth=1.2, label=kind, clip_on=False,
        )  # fmt: skip
    axes.set_yticks(range(len(lines)), [shortened(name, _LONG) for name, *_ in lines])
    axes.set(xlim=(0, 100), ylim=(len(lines) - 0.5, -0.5), xlabel="accuracy, % of the class")
    axes.tick_params(axis="y", length=0)


def _distribution(axes: Axes, lines: Sequence[Line]) -> None:
    """How many classes have which accuracy."""
    edges = [100 * k / _BINS for k in range(_BINS + 1)]
    for k, (kind, rates) in enumerate(_kinds(lines).items()):
        values = [100 * rate.value for rate in rates]
        axes.hist(values, edges, color=COLOURS[k], alpha=0.35, label=kind)
        axes.hist(values, edges, color=COLOURS[k], histtype="step", linewidth=1.5)
    axes.set(xlim=(0, 100), xlabel="accuracy, % of the class", ylabel="classes")
    axes.set_title(f"all {len(lines):,} classes")
