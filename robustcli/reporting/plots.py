"""Pictures of records, as PNG files: accuracy against eps, and the course of a training run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.proportions import Rate
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import format_eps
from robustcli.reporting.figure import COLOURS, accuracy_axis, eps_axis, eps_scale, plain, saved_figure
from robustcli.reporting.record_tables import validated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: (x, accuracy, low, high): x is a radius or an epoch, the others are fractions. The interval is [low, high].
Point = Sequence[float]
_MARKERS = "osD^vP*"
_TITLE_WIDTH = 12  # characters of the title per inch
_FEW = 25  # more points than this are drawn without markers, and their intervals as a band


def eps_curve(
    path: Path,
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str = "accuracy against eps",
    norm: str = "linf",
) -> None:
    """Accuracy with its 95 % interval against eps, one line per name.

    Args:
        path: where to write, atomically; its folder is made.
        curves: name -> points; their x is the radius in pixel units of [0, 1].
        norm: the norm of the radii.

    Raises ValueError when there is no point, ResourceError when `path` cannot be written.
    """
    if not any(curves.values()):
        raise ValueError("no points to draw")
    scale = eps_scale(norm)
    with saved_figure(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            _accuracy_line(axes, [(eps * scale, *rest) for eps, *rest in points], name, i)
        accuracy_axis(axes)
        eps_axis(axes, norm)
        axes.set_title(f"{plain(title)}, with 95 % interval")
        axes.legend(loc="best")


def training_curves(path: Path, rows: Sequence[TrainRow], *, title: str = "") -> None:
    """Loss and its parts, learning rate and, where there are any, validation accuracies, against the epoch.

    title: what was trained, above all panels.
    Raises ValueError without rows, ResourceError when `path` cannot be written.
    """
    if not rows:
        raise ValueError("no training rows to draw")
    with_accuracies = validated(rows)
    width: float = 6.4
    layout: Any = [["loss"], ["rate"]]
    if with_accuracies:
        width, layout = 9.6, [["loss", "accuracy"], ["rate", "accuracy"]]
    with saved_figure(path, width, 4.8) as figure:
        if title:
            wrapped = "\n".join(textwrap.wrap(plain(title), _TITLE_WIDTH * int(width)))
            figure.suptitle(wrapped, x=0.01, ha="left", fontsize=11)
        panels = figure.subplot_mosaic(layout, height_ratios=[5, 2])
        _losses(panels["loss"], rows)
        panels["loss"].set_title("training")
        _learning_rate(panels["rate"], rows)
        panels["rate"].sharex(panels["loss"])
        if with_accuracies:
            _validation(panels["accuracy"], rows)


def _losses(axes: Axes, rows: Sequence[TrainRow]) -> None:
    """The total, and its parts when there are several."""
    names = dict.fromkeys(chain.from_iterable(row.parts for row in rows))
    series = {"loss": [row.loss for row in rows]}
    if len(names) > 1:
        series |= {name: [row.parts.get(name, float("nan")) for row in rows] for name in names}
    epochs = [row.epoch for row in rows]
    for i, (name, values) in enumerate(series.items()):
        marker = _unless_many(_marker(i), rows)
        axes.plot(epochs, values, label=plain(name), color=_colour(i), marker=marker, markersize=4)
    axes.set_ylabel("mean training loss")
    if all(value >= 0 for value in chain.from_iterable(series.values())):
        axes.set_ylim(bottom=0)
    axes.legend(loc="best")


def _learning_rate(axes: Axes, rows: Sequence[TrainRow]) -> None:
    epochs = [row.epoch for row in rows]
    axes.plot(epochs, [row.lr for row in rows], color="#666666", marker=_unless_many(".", rows))
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))


def _validation(axes: Axes, rows: Sequence[TrainRow]) -> None:
    """Clean and robust accuracy, those under FGSM or verified where measured, with Wilson intervals."""
    lines = {
        "clean": _points(rows, lambda row: row.clean),
        f"robust: {_threat(rows[-1])}": _points(rows, lambda row: row.robust),
        "fgsm: one large step": _points(rows, _under_fgsm),
        "verified: by bounds": _points(rows, lambda row: row.verified),
    }
    for i, (name, points) in enumerate(lines.items()):
        if points:
            _accuracy_line(axes, points, name, i)
    accuracy_axis(axes)
    axes.set_xlabel("epoch")
    axes.set_title(f"validation, n = {_sizes(rows)}, with 95 % interval")
    # Below the panel, because a collapse may be anywhere in it.
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.11), fontsize=9)


def _points(rows: Sequence[TrainRow], rate_of: Callable[[TrainRow], Rate | None]) -> list[Point]:
    """One point for each row that has the rate, at the row's epoch."""
    rates = [(row.epoch, rate) for row in rows if (rate := rate_of(row)) is not None]
    return [(epoch, rate.value, *rate.display) for epoch, rate in rates]


def _under_fgsm(row: TrainRow) -> Rate | None:
    if row.fgsm_acc is None:
        return None
    return Rate(round(row.fgsm_acc * row.n), row.n)


def _threat(row: TrainRow) -> str:
    """``pgd-10, linf 8/255 (0.03137)``: the attack of the validation, its steps and its ball."""
    attack = row.attack
    if row.params.get("steps") is not None:
        attack += f"-{row.params['steps']}"
    ball = f"{row.norm} {format_eps(row.eps, row.norm)}"
    return ", ".join(filter(None, (attack, ball)))


def _sizes(rows: Sequence[TrainRow]) -> str:
    """How many samples were validated: ``200``, or ``100 to 200`` when that changed."""
    sizes = [row.n for row in rows if row.n]
    smallest, largest = min(sizes), max(sizes)
    if smallest == largest:
        return str(smallest)
    return f"{smallest} to {largest}"


def _accuracy_line(axes: Axes, points: Sequence[Point], name: str, i: int) -> None:
    """Line number `i`, in percent. Its intervals are error bars; with many points, a band."""
    x = [point[0] for point in points]
    value, low, high = ([100 * point[k] for point in points] for k in (1, 2, 3))
    if len(points) > _FEW:
        axes.plot(x, value, label=plain(name), color=_colour(i))
        axes.fill_between(x, low, high, color=_colour(i), alpha=0.2, linewidth=0)
        return
    axes.errorbar(
        x,
        value,
        yerr=[_lengths(low, value), _lengths(value, high)],
        label=plain(name),
        color=_colour(i),
        marker=_marker(i),
        markersize=5,
        capsize=3,
        clip_on=False,
    )


def _lengths(bottoms: Sequence[float], tops: Sequence[float]) -> list[float]:
    """top - bottom of each bar, >= 0: an interval may miss its accuracy by a rounding error."""
    return [max(0.0, top - bottom) for bottom, top in zip(bottoms, tops, strict=True)]


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _marker(i: int) -> str:
    return _MARKERS[i % len(_MARKERS)]


def _unless_many(marker: str, points: Sequence[object]) -> str:
    """The marker, or none where there are too many points to tell them apart."""
    if len(points) > _FEW:
        return ""
    return marker
