"""The evaluation of a guarded model as pictures: three numbers, and ROC curves of both kinds of points."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustcli.records.guard import VIEWS, GuardCurveRow, GuardRow
from robustcli.reporting.cells import Cell, format_eps, percent
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import COLOURS, WIDTH, accuracy_axis, plain, saved_figure
from robustcli.reporting.guard_table import ALL, guard_sentence
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, shortened, spread
from robustcli.reporting.pictures.lines import bars_of
from robustcli.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS = ("#888888", *COLOURS[:2])


def picture(dossier: Dossier) -> Picture | None:
    """The three numbers of an evaluation of a guard."""
    rows = dossier.of(GuardRow)
    return numbers_picture(rows[0]) if rows else None


def roc_picture(dossier: Dossier) -> Picture | str | None:
    """The curves of its detectors."""
    rows = dossier.of(GuardRow)
    return curves_picture(rows[0], dossier.of(GuardCurveRow)) if rows else None


def numbers_picture(row: GuardRow) -> Picture:
    """Robust accuracy of the three views, side by side."""
    png, title = io.BytesIO(), f"{_measured(row)}: {guard_sentence(row)}"
    with saved_figure(png, WIDTH, 3.9, title) as figure:
        _bars(figure.add_subplot(), row)
    lines: list[list[Cell]] = [[view, *spread(row.standing(view))] for view in VIEWS]
    caption = (
        f"Robust accuracy over {row.n:,} samples with 95 % intervals: without the guard, under attacks that"
        " do not know it, and under attacks that do. Only the last number is one of a guarded model."
    )
    table = Table("guard", ["view", *SPREAD], lines)
    return Picture("guard", "guard", "What the guard holds", caption, png.getvalue(), table)


def curves_picture(row: GuardRow, curves: Sequence[GuardCurveRow]) -> Picture | str:
    """One panel of ROC curves for each kind of points; a sentence where no score has a curve."""
    known = [curve for curve in curves if curve.auroc is not None]
    if not known:
        return "ROC of the detectors: there is no point of a wrong class, or no detector."
    png = io.BytesIO()
    with saved_figure(png, WIDTH, 7.4, _measured(row)) as figure:
        panels = figure.subplots(2, 1, sharex=True)
        for panel, points in zip(panels, VIEWS[1:], strict=True):
            _curves(panel, [curve for curve in curves if curve.points == points], points, row.fpr)
        panels[1].set_xlabel("clean images rejected, %")
    lines: list[list[Cell]] = [
        [curve.points, curve.score, fpr, tpr]
        for curve in known
        for fpr, tpr in _corners(curve)
    ]  # fmt: skip
    told = "; ".join(f"{_name(one)}, {one.points}: {one.auroc:.2f}" for one in known)
    caption = (
        "Points of a wrong class that each score catches, against the clean images that it rejects, for"
        f" points made without knowing the guard (oblivious), by attacks that do (adaptive). AUROC: {told}."
    )
    table = Table("ROC", ["points", "score", "false-positive rate", "true-positive rate"], lines)
    return Picture("guard_roc", "guard", "ROC of the detectors", caption, png.getvalue(), table)


def _corners(curve: GuardCurveRow) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(curve.fpr, curve.tpr, strict=True)]


def _measured(row: GuardRow) -> str:
    """Data and ball, in one line."""
    return f"{row.data} {row.split}, {row.norm} {format_eps(row.eps, row.norm)}"


def _bars(axes: Axes, row: GuardRow) -> None:
    rates = [row.standing(view) for view in VIEWS]
    heights = [100 * rate.value for rate in rates]
    axes.bar(VIEWS, heights, color=_BARS, width=0.6, yerr=bars_of(rates), ecolor="#333333", capsize=4)
    accuracy_axis(axes)
    axes.set(ylim=(0, 110), yticks=range(0, 101, 20))  # room for a number above a bar of 100 %
    axes.set_ylabel("robust accuracy, % of all samples")
    axes.grid(False, axis="x")
    for place, rate in enumerate(rates):
        top = 100 * rate.display[1] + 1.5
        axes.text(place, top, f"{percent(rate.value)} %", ha="center", va="bottom", fontsize=10)


def _curves(axes: Axes, curves: Sequence[GuardCurveRow], points: str, fpr: float | None) -> None:
    """ROC curves of all scores; the diagonal is chance, the dotted line the stated false-positive rate."""
    axes.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1)
    if fpr is not None:
        axes.axvline(100 * fpr, color="#777777", linewidth=1, linestyle=":")
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        if curve.auroc is None:
            continue
        x, y = ([100 * value for value in side] for side in (curve.fpr, curve.tpr))
        name = shortened(plain(_name(curve)), 30)
        axes.plot(x, y, color=colour, linewidth=1.8, label=f"{name} {curve.auroc:.2f}", clip_on=False)
    wrong = max((curve.wrong for curve in curves), default=0)
    axes.set(xlim=(0, 100), ylim=(0, 101), ylabel="wrong points caught, %")
    axes.set_title(f"{points}: {wrong} wrong points")
    if any(curve.auroc is not None for curve in curves):
        axes.legend(title="AUROC", loc="lower right")


def _name(curve: GuardCurveRow) -> str:
    """The name of a score in the legend."""
    return "all detectors" if curve.score == ALL else curve.score
