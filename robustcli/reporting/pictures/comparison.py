"""Several runs side by side: their accuracies, and how far each is from the first on the same samples."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import WIDTH, saved_figure
from robustcli.reporting.paired import CERTIFIED, CLEAN, ROBUST, Paired, compare, verdicts
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, shortened, spread
from robustcli.reporting.pictures.lines import colour, lengths, marker
from robustcli.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURES = (CLEAN, ROBUST, CERTIFIED)
_MOST = 12  # runs
_LONG = 16  # characters of a name


class Compared(NamedTuple):
    """A run, its accuracies, and what differs between the first run and it."""

    name: str
    rates: dict[str, Rate]
    pairs: dict[str, Paired]


def comparison_of(dossiers: Sequence[Dossier]) -> list[Picture]:
    """The runs with a verdict for each sample, up to twelve of them; [] where these are fewer than two.

    Differences are to the first of them, see `reporting.paired`; a run on other samples has none.
    """
    runs = [run for run in dossiers if verdicts(run)][:_MOST]
    if len(runs) < 2:
        return []
    names = _names(runs)
    first, compared = runs[0], []
    for run, name in zip(runs, names, strict=True):
        rates = {measure: Rate(sum(of.values()), len(of)) for measure, of in verdicts(run).items()}
        pairs = () if run is first else compare(first, run).pairs
        compared.append(Compared(name, rates, {pair.measure: pair for pair in pairs}))
    caption = f"Accuracies of {len(runs)} runs over all of their samples, with 95 % intervals"
    if any(run.pairs for run in compared):
        caption += f"; below, the difference to {names[0]} on the samples that both measured"
    title = "Comparison of runs"
    return [Picture("comparison", "comparison", title, f"{caption}.", _png(compared), _table(compared))]


def _names(runs: Sequence[Dossier]) -> list[str]:
    """The last part of each path; a number beside it where two are the same."""
    seen, names = Counter(run.name for run in runs), list[str]()
    for k, run in enumerate(runs, 1):
        names.append(run.name if seen[run.name] == 1 else f"{run.name} ({k})")
    return names


def _table(runs: Sequence[Compared]) -> Table:
    """One line per run and accuracy."""
    lines: list[list[Cell]] = []
    for run in runs:
        for measure, rate in run.rates.items():
            pair = run.pairs.get(measure)
            apart: list[Cell] = [None] * 5
            if pair is not None:
                apart = [pair.difference, *pair.interval, pair.n, pair.p]
            lines.append([run.name, measure, *spread(rate), *apart])
    columns = ["difference", "difference low", "difference high", "paired n", "p"]
    return Table("comparison", ["run", "measure", *SPREAD, *columns], lines)


def _png(runs: Sequence[Compared]) -> bytes:
    png, measures = io.BytesIO(), [name for name in _MEASURES if any(name in run.rates for run in runs)]
    paired = [run for run in runs if run.pairs]
    heights = [0.4 + 0.2 * len(measures) * len(rows) for rows in (runs, paired) if rows]
    with saved_figure(png, WIDTH, 1.8 + sum(heights), "comparison of runs, with 95 % intervals") as figure:
        panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        _accuracies(panels[0], runs, measures)
        if paired:
            _differences(panels[1], paired, measures, shortened(runs[0].name, _LONG))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png.getvalue()


def _accuracies(axes: Axes, runs: Sequence[Compared], measures: Sequence[str]) -> None:
    for k, measure in enumerate(measures):
        rows = {place: run.rates[measure] for place, run in enumerate(runs) if measure in run.rates}
        intervals = {place: (rate.value, *rate.display) for place, rate in rows.items()}
        _dots(axes, intervals, measure, (k, len(measures)))
    _rows(axes, runs)
    axes.set(xlim=(0, 100), xlabel="accuracy, % of all samples")


def _differences(axes: Axes, runs: Sequence[Compared], measures: Sequence[str], first: str) -> None:
    axes.axvline(0, color="#333333", linewidth=1)
    for k, measure in enumerate(measures):
        rows = {place: run.pairs[measure] for place, run in enumerate(runs) if measure in run.pairs}
        intervals = {place: (pair.difference, *pair.interval) for place, pair in rows.items()}
        _dots(axes, intervals, measure, (k, len(measures)))
    _rows(axes, runs)
    axes.set_xlabel(f"difference to {first}, points")


def _dots(
    axes: Axes, intervals: dict[int, tuple[float, float, float]], label: str, place_of: tuple[int, int]
) -> None:
    """One point per run. intervals: row -> (value, low, high). place_of: (k, of how many) in a row."""
    k, count = place_of
    value, low, high = ([100 * one[i] for one in intervals.values()] for i in range(3))
    places = [row + 0.22 * (k - (count - 1) / 2) for row in intervals]
    axes.errorbar(
        value,
        places,
        xerr=[lengths(low, value), lengths(value, high)],
        fmt=marker(k),
        color=colour(k),
        markersize=5,
        capsize=2,
        label=label,
        clip_on=False,
    )


def _rows(axes: Axes, runs: Sequence[Compared]) -> None:
    """A line of the panel for each run, from above."""
    axes.set_yticks(range(len(runs)), [shortened(run.name, _LONG) for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
