"""Lines of accuracy with their intervals, which several pictures draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from robustcli.proportions import Rate
from robustcli.reporting.figure import (
    COLOURS,
    WIDTH,
    Point,
    Target,
    accuracy_axis,
    eps_axis,
    eps_scale,
    plain,
    saved_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*"
_FEW = 25  # more points than this are drawn without markers, and their intervals as a band


def eps_curve(
    target: Target,
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str = "accuracy against eps",
    norm: str = "linf",
) -> None:
    """Accuracy with its 95 % interval against eps, one line per name.

    Args:
        target: where to draw.
        curves: name -> points; their x is the radius in pixel units of [0, 1].
        norm: the norm of the radii.

    Raises ValueError when there is no point, ResourceError when `target` cannot be written.
    """
    if not any(curves.values()):
        raise ValueError("no points to draw")
    scale = eps_scale(norm)
    with saved_figure(target, WIDTH, 3.7, f"{title}, with 95 % interval") as figure:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            accuracy_line(axes, [(eps * scale, *rest) for eps, *rest in points], name, i)
        accuracy_axis(axes)
        eps_axis(axes, norm)
        axes.legend(loc="best")


def accuracy_line(axes: Axes, points: Sequence[Point], name: str, i: int) -> None:
    """Line number `i`, in percent. Its intervals are error bars; with many points, a band."""
    x = [point[0] for point in points]
    value, low, high = ([100 * point[k] for point in points] for k in (1, 2, 3))
    if len(points) > _FEW:
        axes.plot(x, value, label=plain(name), color=colour(i))
        axes.fill_between(x, low, high, color=colour(i), alpha=0.2, linewidth=0)
        return
    axes.errorbar(
        x,
        value,
        yerr=[lengths(low, value), lengths(value, high)],
        label=plain(name),
        color=colour(i),
        marker=marker(i),
        markersize=5,
        capsize=3,
        clip_on=False,
    )


def lengths(bottoms: Sequence[float], tops: Sequence[float]) -> list[float]:
    """top - bottom of each bar, >= 0: an interval may miss its accuracy by a rounding error."""
    return [max(0.0, top - bottom) for bottom, top in zip(bottoms, tops, strict=True)]


def bars_of(rates: Sequence[Rate]) -> list[list[float]]:
    """Lengths of the error bars of accuracies: below each and above it, in percent."""
    values = [100 * rate.value for rate in rates]
    low, high = ([100 * rate.display[k] for rate in rates] for k in (0, 1))
    return [lengths(low, values), lengths(values, high)]


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    return _MARKERS[i % len(_MARKERS)]


def unless_many(marker: str, points: Sequence[object]) -> str:
    """The marker, or none where there are too many points to tell them apart."""
    if len(points) > _FEW:
        return ""
    return marker
