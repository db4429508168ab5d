"""The evaluation of a guarded model as a table and a sentence: bare, oblivious and adaptive side by side."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.proportions import Rate
from robustcli.records.guard import VIEWS, GuardCurveRow, GuardRow
from robustcli.reporting.cells import Cell, percent
from robustcli.reporting.tables import Table

#: The score of all detectors together.
ALL = "excess"
_NOTE = (
    "Bare: the first network without its defences. Oblivious: points made on it. Adaptive: the worst of these"
    " and of all searches that know the defences. Standing: right and accepted on the clean image, and no"
    " point found is wrong and accepted. Caught: of the points of a wrong class. Brackets: 95 % Wilson"
    " interval."
)


def guard_table(row: GuardRow, curves: Sequence[GuardCurveRow]) -> Table:
    """One line per measure, a column for each of the three views; and what rejecting costs."""
    lines: list[list[Cell]] = [
        ["clean: right", Rate(row.bare_right, row.n), *2 * [Rate(row.clean_right, row.n)]],
        ["clean: rejected", None, *2 * [row.clean_rejected]],
        ["clean: rejected though right", None, *2 * [Rate(row.rejected_right, row.n)]],
        ["robust accuracy", *map(row.standing, VIEWS)],
    ]
    names = list(dict.fromkeys(curve.score for curve in curves))
    for name in names:
        pair = {curve.points: curve for curve in curves if curve.score == name}
        what = "all detectors" if name == ALL else name
        lines.append([f"{what}: caught", None, *(pair[view].rate for view in VIEWS[1:])])
        lines.append([f"{what}: AUROC", None, *(pair[view].auroc for view in VIEWS[1:])])
    for fpr, oblivious, adaptive in row.at_fpr:
        rates = (Rate(int(k), row.n) for k in (oblivious, adaptive))
        lines.append([f"robust accuracy, at most, at {percent(fpr)} % false alarms", None, *rates])
    return Table("guard", ["", *VIEWS], lines, f"{_NOTE} {_settings(row)}")


def _settings(row: GuardRow) -> str:
    """At which false-positive rate, and over how many draws."""
    sentences = []
    if row.fpr is not None:
        sentences.append(f"Thresholds were set for {percent(row.fpr)} % false alarms.")
    if row.at_fpr:
        sentences.append(
            "Lines with a rate move the joint threshold on these clean images. The points stay, so "
            "these are upper bounds."
        )
    if row.draws > 1:
        sentences.append(f"Judged by the majority of {row.draws} fresh draws.")
    return " ".join(sentences)


def guard_sentence(row: GuardRow) -> str:
    """What the guard holds against an attacker who knows it, in words, with the bare number beside it."""
    bare, oblivious, adaptive = (row.standing(view).value for view in VIEWS)
    numbers = f"adaptive {percent(adaptive)} % where the bare model has {percent(bare)} %"
    promised = 100 * (oblivious - bare)
    seen = f"the oblivious number was {percent(oblivious)} %"
    if promised > 0:
        seen = f"the oblivious attack promised {promised:+.1f} points, {100 * (adaptive - bare):+.1f} remain"
    return f"{row.finding}: {numbers}; {seen}"
