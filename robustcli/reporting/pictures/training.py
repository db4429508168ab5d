"""The course of a training: accuracies with the best epoch, losses, learning rate."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from robustcli.proportions import Rate
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import Cell, format_eps, percent
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import WIDTH, Point, Target, accuracy_axis, plain, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, spread
from robustcli.reporting.pictures.lines import accuracy_line, colour, marker, unless_many
from robustcli.reporting.record_tables import validated
from robustcli.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHTS = {"accuracy": 3.4, "loss": 1.9, "rate": 1.1}  # inches


def picture(dossier: Dossier) -> Picture | None:
    """The curves of a training run."""
    rows = dossier.of(TrainRow)
    if not rows:
        return None
    objective = dossier.config.get("objective")
    name = objective.get("name", "") if isinstance(objective, Mapping) else ""
    return training_picture(rows, str(name), dossier.document.get("best") or {})


def training_picture(rows: Sequence[TrainRow], objective: str, best: Mapping[str, Any]) -> Picture:
    """The curves of a training.

    best: epoch and robust_acc of the best checkpoint; empty while it is not known.
    Raises ValueError without rows.
    """
    png = io.BytesIO()
    title = ", ".join(filter(None, (f"{rows[-1].model} on {rows[-1].data}", objective)))
    training_curves(png, rows, title=title, best=best.get("epoch"))
    return Picture(
        "training", "training", "Training curves", _caption(rows, best), png.getvalue(), _table(rows)
    )


def training_curves(
    target: Target, rows: Sequence[TrainRow], *, title: str = "", best: float | None = None
) -> None:
    """Validation accuracies where there are any, loss and its parts, learning rate, against the epoch.

    title: what was trained, above all panels. best: the epoch of the best checkpoint, where it is known.
    Raises ValueError without rows, ResourceError when `target` cannot be written.
    """
    if not rows:
        raise ValueError("no training rows to draw")
    heights = {name: inches for name, inches in _HEIGHTS.items() if name != "accuracy" or validated(rows)}
    with saved_figure(target, WIDTH, 0.6 + sum(heights.values()), title) as figure:
        layout: Any = [[name] for name in heights]
        panels = figure.subplot_mosaic(layout, height_ratios=list(heights.values()), sharex=True)
        _losses(panels["loss"], rows)
        _learning_rate(panels["rate"], rows)
        if "accuracy" in panels:
            _validation(panels["accuracy"], rows, best)
        for axes in panels.values():
            axes.label_outer()
            _mark(axes, best)


def _mark(axes: Axes, best: float | None) -> None:
    """A line at the best epoch."""
    if best is not None:
        axes.axvline(best, color="#333333", linestyle=":", linewidth=1.2, zorder=1)


def _losses(axes: Axes, rows: Sequence[TrainRow]) -> None:
    """The total, and its parts when there are several."""
    series = _loss_series(rows)
    epochs = [row.epoch for row in rows]
    for i, (name, values) in enumerate(series.items()):
        shape = unless_many(marker(i), rows)
        axes.plot(epochs, values, label=plain(name), color=colour(i), marker=shape, markersize=4)
    axes.set_ylabel("mean training loss")
    if all(value >= 0 for value in chain.from_iterable(series.values())):
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(loc="best")


def _loss_series(rows: Sequence[TrainRow]) -> dict[str, list[float]]:
    """The loss of each row; its parts too where there are several, NaN where a row lacks one."""
    names = dict.fromkeys(chain.from_iterable(row.parts for row in rows))
    series = {"loss": [row.loss for row in rows]}
    if len(names) > 1:
        series |= {name: [row.parts.get(name, float("nan")) for row in rows] for name in names}
    return series


def _learning_rate(axes: Axes, rows: Sequence[TrainRow]) -> None:
    epochs = [row.epoch for row in rows]
    axes.plot(epochs, [row.lr for row in rows], color="#666666", marker=unless_many(".", rows))
    axes.set(xlabel="epoch", ylabel="learning\nrate", ylim=(0, None))


def _validation(axes: Axes, rows: Sequence[TrainRow], best: float | None) -> None:
    """Clean and robust accuracy, those under FGSM or verified where measured, with Wilson intervals."""
    for i, (name, rates) in enumerate(_accuracies(rows).items()):
        points: list[Point] = [(epoch, rate.value, *rate.display) for epoch, rate in rates.items()]
        if points:
            accuracy_line(axes, points, _legend(name, rows[-1]), i)
    if best is not None:
        _gap(axes, _accuracies(rows)["robust"], best)
    accuracy_axis(axes)
    marked = "" if best is None else "; dotted: best epoch"
    axes.set_title(f"validation, n = {_sizes(rows)}, 95 % interval{marked}")
    # Above the panel, because a collapse may be anywhere in it.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=2)


def _gap(axes: Axes, robust: Mapping[float, Rate], best: float) -> None:
    """From the best epoch's robust accuracy down to the last one's, where that is lower."""
    if best not in robust:
        return
    last = max(robust)
    top, bottom = 100 * robust[best].value, 100 * robust[last].value
    if bottom >= top:
        return
    axes.hlines(top, best, last, color="#333333", linestyle=":", linewidth=1.2)
    axes.annotate("", (last, bottom), (last, top), arrowprops={"arrowstyle": "<->", "color": "#333333"})
    words, middle = f"{bottom - top:.1f} points", (last, (top + bottom) / 2)
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    where: Any = {"textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(words, middle, (-6, 0), fontsize=9, bbox=paper, zorder=5, **where)


def _accuracies(rows: Sequence[TrainRow]) -> dict[str, dict[float, Rate]]:
    """Name -> epoch -> accuracy, where it was measured."""
    kinds: dict[str, Callable[[TrainRow], Rate | None]] = {
        "clean": lambda row: row.clean,
        "robust": lambda row: row.robust,
        "fgsm": _under_fgsm,
        "verified": lambda row: row.verified,
    }
    return {
        name: {row.epoch: rate for row in rows if (rate := rate_of(row)) is not None}
        for name, rate_of in kinds.items()
    }


def _under_fgsm(row: TrainRow) -> Rate | None:
    if row.fgsm_acc is None:
        return None
    return Rate(round(row.fgsm_acc * row.n), row.n)


def _legend(name: str, row: TrainRow) -> str:
    """What a line is of; the robust one names its attack and ball, such as ``pgd-10, linf 8/255``."""
    if name != "robust":
        return {"fgsm": "fgsm: one large step", "verified": "verified: by bounds"}.get(name, name)
    attack = row.attack
    if row.params.get("steps") is not None:
        attack += f"-{row.params['steps']}"
    ball = f"{row.norm} {format_eps(row.eps, row.norm)}"
    return f"robust: {', '.join(filter(None, (attack, ball)))}"


def _sizes(rows: Sequence[TrainRow]) -> str:
    """How many samples were validated: ``200``, or ``100 to 200`` when that changed."""
    sizes = [row.n for row in rows if row.n]
    smallest, largest = min(sizes), max(sizes)
    if smallest == largest:
        return str(smallest)
    return f"{smallest} to {largest}"


def _caption(rows: Sequence[TrainRow], best: Mapping[str, Any]) -> str:
    """What the curves show, and what was lost after the best epoch."""
    if not validated(rows):
        return f"Loss and learning rate over {rows[-1].epoch:g} epochs; there was no validation."
    words = f"Validation accuracy, loss and learning rate over {rows[-1].epoch:g} epochs."
    then, last = best.get("robust_acc"), rows[-1].robust_acc
    if then is None or last is None:
        return words
    words += f" The best checkpoint is of epoch {best['epoch']:g}, with robust accuracy {percent(then)} %"
    words += f"; the last one has {percent(last)} %."
    return f"{words} Robust overfitting, best minus last: {100 * (then - last):.1f} points."


def _table(rows: Sequence[TrainRow]) -> Table:
    """One line per validation: all that is drawn."""
    series, accuracies = _loss_series(rows), _accuracies(rows)
    measured = {name: rates for name, rates in accuracies.items() if rates}
    columns = ["epoch", *series, "learning rate"]
    columns += [f"{name} {part}" for name in measured for part in SPREAD]
    lines: list[list[Cell]] = []
    for k, row in enumerate(rows):
        losses: list[Cell] = [None if math.isnan(values[k]) else values[k] for values in series.values()]
        rates = chain.from_iterable(spread(rates.get(row.epoch)) for rates in measured.values())
        lines.append([row.epoch, *losses, row.lr, *rates])
    return Table("training curves", columns, lines)
