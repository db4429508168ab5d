"""Pictures of a guard at work: scores as they came, and its numbers before and after an update."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell
from robustcli.reporting.figure import COLOURS, WIDTH, accuracy_axis, plain, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, spread
from robustcli.reporting.pictures.lines import bars_of
from robustcli.reporting.tables import Table


def scores_in_time(scores: Sequence[float], clean: int, threshold: float, name: str) -> Picture:
    """Scores in the order of the images, of which the first `clean` are clean and the others attacks."""
    png = io.BytesIO()
    parts = {"clean": range(clean), "attacks that do not know the guard": range(clean, len(scores))}
    with saved_figure(png, WIDTH, 3.2) as figure:
        axes = figure.add_subplot()
        for (words, places), colour in zip(parts.items(), COLOURS, strict=False):
            values = [scores[k] for k in places]
            axes.plot(list(places), values, ".", color=colour, markersize=4, label=words)
        axes.axhline(threshold, color="black", linewidth=1, label="threshold")
        axes.set_xlabel("image")
        axes.set_ylabel(f"score of {plain(name)}")
        figure.legend(loc="outside upper left", ncols=2)
    lines: list[list[Cell]] = [
        [words, k, scores[k], threshold] for words, places in parts.items() for k in places
    ]
    caption = f"Score of {name} for each image in the order they came; above the line an image is rejected."
    table = Table("scores", ["kind", "image", "score", "threshold"], lines)
    return Picture("scores", "guard", "Scores as the images came", caption, png.getvalue(), table)


def before_and_after(numbers: Mapping[str, Mapping[str, Rate]]) -> Picture:
    """Robust accuracy with its 95 % interval: a group of bars for each guard, a bar for each attack."""
    png, kinds = io.BytesIO(), list(next(iter(numbers.values())))
    width = 0.8 / len(kinds)
    with saved_figure(png, WIDTH, 3.6) as figure:
        axes = figure.add_subplot()
        for k, kind in enumerate(kinds):
            rates = [rates[kind] for rates in numbers.values()]
            places = [group + (k - (len(kinds) - 1) / 2) * width for group in range(len(rates))]
            heights = [100 * rate.value for rate in rates]
            axes.bar(places, heights, width, yerr=bars_of(rates), color=COLOURS[k], capsize=3, label=kind)
        axes.set_xticks(range(len(numbers)), [plain(name) for name in numbers])
        accuracy_axis(axes)
        axes.set_ylabel("robust accuracy, % of all samples")
        figure.legend(loc="outside upper left", ncols=len(kinds))
    lines: list[list[Cell]] = [
        [name, kind, *spread(rate)] for name, rates in numbers.items() for kind, rate in rates.items()
    ]
    caption = f"Robust accuracy under {', '.join(kinds)} attacks, {' and '.join(numbers)} the update."
    table = Table("guard", ["guard", "attack", *SPREAD], lines)
    return Picture("guard", "guard", "Before and after the update", caption, png.getvalue(), table)
