"""The evaluation of a guarded model as a picture: three numbers, and ROC curves of both kinds of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustcli.records.guard import VIEWS, GuardCurveRow, GuardRow
from robustcli.reporting.cells import percent
from robustcli.reporting.figure import COLOURS, Target, accuracy_axis, plain, saved_figure
from robustcli.reporting.guard_table import ALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS = ("#888888", *COLOURS[:2])
_HEIGHT, _PANEL = 4.2, 4.2  # inches


def guard_picture(target: Target, row: GuardRow, curves: Sequence[GuardCurveRow], *, title: str) -> None:
    """Robust accuracy of the three views; then one panel of ROC curves for each kind of points.

    Raises ResourceError when `target` cannot be written.
    """
    panels = 3 if curves else 1
    with saved_figure(target, max(5.5, _PANEL * panels), _HEIGHT) as figure:
        axes = figure.subplots(1, panels, squeeze=False)[0]
        _bars(axes[0], row)
        for panel, points in zip(axes[1:], VIEWS[1:], strict=False):
            _curves(panel, [curve for curve in curves if curve.points == points], points, row.fpr)
        figure.suptitle(plain(title), fontsize=10)


def _bars(axes: Axes, row: GuardRow) -> None:
    rates = [row.standing(view) for view in VIEWS]
    heights = [100 * rate.value for rate in rates]
    below = [100 * (rate.value - rate.display[0]) for rate in rates]
    above = [100 * (rate.display[1] - rate.value) for rate in rates]
    axes.bar(VIEWS, heights, color=_BARS, width=0.6, yerr=[below, above], ecolor="#333333", capsize=4)
    accuracy_axis(axes)
    axes.set(ylim=(0, 110), yticks=range(0, 101, 20))  # room for a number above a bar of 100 %
    axes.grid(False, axis="x")
    for place, rate in enumerate(rates):
        top = 100 * rate.display[1] + 1.5
        axes.text(place, top, f"{percent(rate.value)} %", ha="center", va="bottom", fontsize=10)
    axes.set_title("robust accuracy")


def _curves(axes: Axes, curves: Sequence[GuardCurveRow], points: str, fpr: float | None) -> None:
    """ROC curves of all scores; the diagonal is chance, the dotted line the stated false-positive rate."""
    axes.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1)
    if fpr is not None:
        axes.axvline(100 * fpr, color="#777777", linewidth=1, linestyle=":")
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        if curve.auroc is None:
            continue
        x, y = ([100 * value for value in side] for side in (curve.fpr, curve.tpr))
        axes.plot(x, y, color=colour, linewidth=1.8, label=plain(f"{_name(curve)} {curve.auroc:.2f}"))
    wrong = max((curve.wrong for curve in curves), default=0)
    axes.set(xlim=(0, 100), ylim=(0, 101), xlabel="clean images rejected, %", ylabel="wrong points caught, %")
    axes.set_title(f"{points}: {wrong} wrong points")
    if any(curve.auroc is not None for curve in curves):
        axes.legend(title="AUROC", loc="lower right", fontsize=9)


def _name(curve: GuardCurveRow) -> str:
    """The name of a score in the legend."""
    return "all detectors" if curve.score == ALL else curve.score
