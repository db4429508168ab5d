"""Whether the model is right as often as it is sure: accuracy against confidence, on clean images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from robustcli.proportions import Rate
from robustcli.records.sample import SampleRow
from robustcli.reporting.cells import Cell
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import COLOURS, WIDTH, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, spread
from robustcli.reporting.pictures.lines import bars_of
from robustcli.reporting.tables import Table

_BINS = 10


class Bin(NamedTuple):
    """Samples of one tenth of confidence: its lower end, their mean confidence, how many are right."""

    low: float
    confidence: float
    right: Rate


def picture(dossier: Dossier) -> Picture | str | None:
    """The clean answers of an evaluation, by how sure they are."""
    answered = [sample for sample in dossier.answers if sample.clean is not None]
    if not dossier.answers:
        return None
    if not answered:
        return "Reliability diagram: no sample has a finite answer."
    if not any(sample.confidence for sample in answered):
        return "Reliability diagram: labels alone do not say how sure the model is."
    bins = confidence_bins(answered)
    error = expected_error(bins)
    caption = (
        f"Accuracy against the model's confidence on {len(answered):,} clean images, in {_BINS} bins of equal"
        " width, with 95 % intervals; below, the samples per bin. On the dashed line the model is right as"
        " often as it is sure."
        f" Expected calibration error: {100 * error:.1f} points."
    )
    lines: list[list[Cell]] = [
        [one.low, one.low + 1 / _BINS, one.confidence, *spread(one.right)] for one in bins
    ]
    table = Table("reliability", ["from", "to", "mean confidence", *SPREAD], lines)
    title = f"confidence on clean images, ECE {100 * error:.1f} points"
    return Picture("reliability", "classes", "Reliability diagram", caption, _png(bins, title), table)


def confidence_bins(samples: Sequence[SampleRow]) -> list[Bin]:
    """The bins (k / 10, (k + 1) / 10] that hold samples, ascending; the first one also holds 0."""
    groups: dict[int, list[SampleRow]] = {}
    for sample in samples:
        place = max(0, math.ceil(round(_BINS * sample.confidence, 6)) - 1)
        groups.setdefault(place, []).append(sample)
    return [
        Bin(
            place / _BINS,
            sum(sample.confidence for sample in group) / len(group),
            Rate(sum(sample.correct for sample in group), len(group)),
        )
        for place, group in sorted(groups.items())
    ]


def expected_error(bins: Sequence[Bin]) -> float:
    """sum_b n_b / n |accuracy_b - confidence_b|: the expected calibration error, in [0, 1].

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
    """
    n = sum(one.right.n for one in bins)
    return sum(one.right.n * abs(one.right.value - one.confidence) for one in bins) / n


def _png(bins: Sequence[Bin], title: str) -> bytes:
    png = io.BytesIO()
    with saved_figure(png, WIDTH, 5.2, title) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        x, y = [100 * b.confidence for b in bins], [100 * b.right.value for b in bins]
        above.plot([0, 100], [0, 100], color="#666666", linestyle="--", linewidth=1.2, label="calibrated")
        bars = bars_of([b.right for b in bins])
        above.errorbar(
            x,
            y,
            yerr=bars,
            fmt="o-",
            color=COLOURS[0],
            markersize=5,
            capsize=3,
            clip_on=False,
            label="measured",
        )
        above.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, % of the bin")
        above.legend(loc="upper left")
        middles = [100 * (b.low + 0.5 / _BINS) for b in bins]
        counts = [b.right.n for b in bins]
        below.bar(middles, counts, width=90 / _BINS, color=COLOURS[0])
        below.set(xlabel="confidence, %", ylabel="samples", ylim=(0, 1.3 * max(counts)))
        for place, count in zip(middles, counts, strict=True):
            below.annotate(
                f"{count:,}", (place, count), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
    return png.getvalue()
