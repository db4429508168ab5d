"""What is taken for what, without an attack and under it: a matrix, or the pairs of many classes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from robustcli.records.sample import SampleRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import COLOURS, WIDTH, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import shortened
from robustcli.reporting.pictures.heatmap import ink_on, matrix
from robustcli.reporting.tables import Table

_MATRIX = 13  # columns; where there would be more, pairs are shown
_PAIRS = 20
_LONG = 14  # characters of a name beside a bar
_NONE = "no answer"
#: (label, answer) -> samples.
Counts = Mapping[tuple[str, str], int]


class Cell(NamedTuple):
    """How many samples of a class have an answer, of how many."""

    label: str
    answer: str
    samples: int
    of: int


def clean_picture(dossier: Dossier) -> Picture | str | None:
    """The answers to the clean images."""
    return _picture(dossier, "clean", [sample.clean for sample in dossier.answers])


def adversarial_picture(dossier: Dossier) -> Picture | str | None:
    """The answers to the points that broke a sample, and to the clean image of all others."""
    return _picture(dossier, "adversarial", [_under_attack(sample) for sample in dossier.answers])


def _under_attack(sample: SampleRow) -> str | None:
    return sample.clean if sample.attacked is None else sample.attacked


def _picture(dossier: Dossier, kind: str, answers: Sequence[str | None]) -> Picture | str | None:
    if not answers:
        return None
    labels = [sample.label for sample in dossier.answers]
    pairs = zip(labels, (_NONE if answer is None else answer for answer in answers), strict=True)
    counts, sizes = Counter(pairs), Counter(labels)
    when = {"clean": "without an attack", "adversarial": "under attack"}[kind]
    names = _order(dossier, sizes)
    columns = [*names, *sorted({answer for _, answer in counts} - set(names))]
    right = sum(counts[name, name] for name in names)
    caption = f"{when}, over {len(labels):,} samples, of which {right:,} are right."
    if kind == "adversarial":
        caption += " A sample that no attack broke keeps its answer."
    if len(columns) <= _MATRIX:
        cells, first = _all_cells(counts, sizes, names, columns), "Answers to each class"
        png = _matrix(cells, names, columns, f"answers {when}, % of each class")
    elif len(labels) == right:
        return f"Confusion {when}: no sample of {len(names):,} classes is taken for another."
    else:
        cells, first = _most_frequent(counts, sizes), "The most frequent confusions"
        png = _bars(cells, f"most frequent confusions {when}")
    table = Table("answers", Cell._fields, cells)
    title = f"What is taken for what, {when}"
    return Picture(f"confusion_{kind}", "classes", title, f"{first} {caption}", png, table)


def _order(dossier: Dossier, sizes: Mapping[str, int]) -> list[str]:
    """The classes that have samples, in the order of their labels where that is known."""
    clean = dossier.eval_row("clean")
    known = [] if clean is None else [name for name in clean.per_class if name in sizes]
    return [*known, *sorted(set(sizes) - set(known))]


def _all_cells(
    counts: Counts, sizes: Mapping[str, int], labels: Sequence[str], answers: Sequence[str]
) -> list[Cell]:
    """Row by row."""
    pairs = product(labels, answers)
    return [Cell(label, answer, counts.get((label, answer), 0), sizes[label]) for label, answer in pairs]


def _most_frequent(counts: Counts, sizes: Mapping[str, int]) -> list[Cell]:
    """The pairs of two classes with most samples, the first ones first."""
    wrong = sorted((-k, label, answer) for (label, answer), k in counts.items() if label != answer)
    return [Cell(label, answer, -k, sizes[label]) for k, label, answer in wrong[:_PAIRS]]


def _matrix(cells: Sequence[Cell], labels: Sequence[str], answers: Sequence[str], title: str) -> bytes:
    """A square per label and answer, with its share in whole percent; an empty one where there is none."""
    png, across = io.BytesIO(), len(answers)
    shares = [100 * cell.samples / cell.of for cell in cells]
    rows = [shares[k : k + across] for k in range(0, len(shares), across)]
    with saved_figure(png, WIDTH, 1.7 + 3.4 * len(labels) / max(across, 4), title) as figure:
        axes = figure.add_subplot()
        size = 14 if across <= 4 else 7
        matrix(figure, axes, rows, [shortened(name, size) for name in labels],
               [shortened(name, size) for name in answers])  # fmt: skip
        axes.set(xlabel="answer", ylabel="label")
        for i, row in enumerate(rows):
            for k, share in enumerate(row):
                if share:
                    text = "<1" if share < 1 else str(min(round(share), 99 + (share == 100)))
                    axes.text(k, i, text, ha="center", va="center", color=ink_on(share), fontsize=9)
    return png.getvalue()


def _bars(cells: Sequence[Cell], title: str) -> bytes:
    """A bar per pair."""
    from matplotlib.ticker import MaxNLocator

    png, places = io.BytesIO(), range(len(cells))
    counts = [cell.samples for cell in cells]
    names = [f"{shortened(cell.label, _LONG)} → {shortened(cell.answer, _LONG)}" for cell in cells]
    with saved_figure(png, WIDTH, 1.2 + 0.28 * len(cells), title) as figure:
        axes = figure.add_subplot()
        axes.barh(places, counts, color=COLOURS[1], height=0.65)
        axes.set_yticks(places, names, fontsize=9)
        for place, cell in enumerate(cells):
            text, end = f"{cell.samples:,} of {cell.of:,}", (cell.samples, place)
            axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set(xlim=(0, 1.35 * max(counts)), ylim=(len(cells) - 0.5, -0.5), xlabel="samples")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
    return png.getvalue()
