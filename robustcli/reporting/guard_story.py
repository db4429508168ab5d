"""Pictures of a guard at work: scores as they came, and its numbers before and after an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robustcli.proportions import Rate
from robustcli.reporting.figure import COLOURS, accuracy_axis, plain, saved_figure


def scores_in_time(path: Path, scores: Sequence[float], clean: int, threshold: float, name: str) -> None:
    """Scores in the order of the images, of which the first `clean` are clean and the others attacks.

    Raises ResourceError when `path` cannot be written.
    """
    with saved_figure(path, 6.4, 3.2) as figure:
        axes = figure.add_subplot()
        parts = {"clean": range(clean), "attacks that do not know the guard": range(clean, len(scores))}
        for (words, places), colour in zip(parts.items(), COLOURS, strict=False):
            values = [scores[k] for k in places]
            axes.plot(list(places), values, ".", color=colour, markersize=4, label=words)
        axes.axhline(threshold, color="black", linewidth=1, label="threshold")
        axes.set_xlabel("image")
        axes.set_ylabel(f"score of {plain(name)}")
        figure.legend(loc="outside upper left", ncols=3)


def bars(path: Path, numbers: Mapping[str, Mapping[str, Rate]]) -> None:
    """Robust accuracy with its 95 % interval: a group of bars for each guard, a bar for each kind of attack.

    Raises ResourceError when `path` cannot be written.
    """
    kinds = list(next(iter(numbers.values())))
    width = 0.8 / len(kinds)
    with saved_figure(path, 6.4, 3.6) as figure:
        axes = figure.add_subplot()
        for k, kind in enumerate(kinds):
            rates = [rates[kind] for rates in numbers.values()]
            places = [group + (k - (len(kinds) - 1) / 2) * width for group in range(len(rates))]
            low = [100 * (rate.value - rate.display[0]) for rate in rates]
            high = [100 * (rate.display[1] - rate.value) for rate in rates]
            heights = [100 * rate.value for rate in rates]
            axes.bar(places, heights, width, yerr=[low, high], color=COLOURS[k], capsize=3, label=kind)
        axes.set_xticks(range(len(numbers)), [plain(name) for name in numbers])
        accuracy_axis(axes)
        axes.set_ylabel("robust accuracy, % of all samples")
        figure.legend(loc="outside upper left", ncols=len(kinds))
