"""Pictures of records, as PNG files: accuracy against eps, and the course of a training run."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.errors import printable
from robustcli.proportions import Rate
from robustcli.records import EvalRow, TrainRow
from robustcli.reporting.cells import format_eps
from robustcli.runtime.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by colour-blind readers too (their yellow is too pale for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"
_STYLE: Any = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "figure.constrained_layout.w_pad": 0.1,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


def accuracy_curve(curves: Mapping[str, Sequence[EvalRow]], path: Path, *, title: str = "accuracy against eps") -> None:
    """Robust accuracy with its 95 % Wilson interval against eps: one line per name, the clean accuracy at eps = 0.

    curves: name -> rows of one norm, at least one with a radius; per radius the lowest accuracy counts. Raises ValueError
    for nothing to draw or more than one norm, ResourceError when `path` cannot be written.
    """
    norms = {row.norm for rows in curves.values() for row in rows}
    if len(norms) != 1:
        raise ValueError(f"one picture shows one norm, got {sorted(norms)}")
    norm = norms.pop()
    with _figure(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        scale = 255 if norm == "linf" else 1  # 1/255 is one step of a pixel
        for i, (name, rows) in enumerate(curves.items()):
            points = _by_radius(rows)
            _line(axes, [eps * scale for eps in points], list(points.values()), name, i)
        _accuracy_axis(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("eps x 255 (linf)" if scale > 1 else f"eps ({norm}, pixels in [0, 1])")
        if scale > 1:
            axes.secondary_xaxis("top", functions=(_unit, _levels)).set_xlabel("eps (linf, pixels in [0, 1])")
        sizes = sorted({row.n for rows in curves.values() for row in rows})
        axes.set_title(f"{_text(title)}, {_measured(sizes)}")
        axes.legend(loc="best")


def training_curves(rows: Sequence[TrainRow], path: Path, *, title: str = "training") -> None:
    """Loss and its parts, validation accuracies with 95 % Wilson intervals, and learning rate against the epoch.

    Raises ValueError without rows, ResourceError when `path` cannot be written.
    """
    if not rows:
        raise ValueError("no training rows to draw")
    measured = any(row.clean is not None or row.robust is not None for row in rows)
    with _figure(path, 9.6 if measured else 6.4, 4.8) as figure:
        panels = figure.subplot_mosaic([["loss", "accuracy"], ["rate", "accuracy"]] if measured else [["loss"], ["rate"]], height_ratios=[3, 1])
        _losses(panels["loss"], rows)
        panels["loss"].set_title(_text(title))
        panels["rate"].plot([row.epoch for row in rows], [row.lr for row in rows], color="#666666", marker="." if len(rows) <= 25 else "")
        panels["rate"].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
        panels["rate"].sharex(panels["loss"])
        if measured:
            _validation(panels["accuracy"], rows)


def _losses(axes: Axes, rows: Sequence[TrainRow]) -> None:
    """The total, and its parts when there are several."""
    names = list(dict.fromkeys(name for row in rows for name in row.parts))
    series = {"loss": [row.loss for row in rows]}
    if len(names) > 1:
        series |= {name: [row.parts.get(name, float("nan")) for row in rows] for name in names}
    for i, (name, values) in enumerate(series.items()):
        marker = _MARKERS[i % len(_MARKERS)] if len(rows) <= 25 else ""
        axes.plot([row.epoch for row in rows], values, label=_text(name), color=COLOURS[i % len(COLOURS)], marker=marker, markersize=4)
    axes.set_ylabel("mean training loss")
    if all(value >= 0 for values in series.values() for value in values):
        axes.set_ylim(bottom=0)
    axes.legend(loc="best")


def _validation(axes: Axes, rows: Sequence[TrainRow]) -> None:
    drawn: list[tuple[str, list[tuple[float, Rate]]]] = [
        ("clean", [(row.epoch, row.clean) for row in rows if row.clean is not None]),
        (f"robust: {_threat(rows)}", [(row.epoch, row.robust) for row in rows if row.robust is not None]),
    ]
    for i, (name, points) in enumerate(drawn):
        if points:
            _line(axes, [x for x, _ in points], [rate for _, rate in points], name, i)
    _accuracy_axis(axes)
    axes.set_xlabel("epoch")
    axes.set_title("validation, " + _measured(sorted({row.n for row in rows if row.n})))
    axes.legend(loc="best")


def _threat(rows: Sequence[TrainRow]) -> str:
    last = rows[-1]
    steps = last.params.get("steps")
    return f"{last.attack}{'' if steps is None else f'-{steps}'}, {last.norm} {format_eps(last.eps, last.norm)}".strip(", ")


def _measured(sizes: Sequence[int]) -> str:
    """``n = 450, with 95 % interval``."""
    return f"n = {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''}, with 95 % interval"


def _by_radius(rows: Sequence[EvalRow]) -> dict[float, Rate]:
    """eps -> the lowest robust accuracy there; 0 -> the clean accuracy."""
    points: dict[float, Rate] = {}
    for row in rows:
        rate = row.robust
        if rate is not None and row.eps > 0 and (row.eps not in points or rate.value < points[row.eps].value):
            points[row.eps] = rate
    if rows:
        points[0.0] = rows[0].clean
    return dict(sorted(points.items()))


def _line(axes: Axes, x: Sequence[float], rates: Sequence[Rate], name: str, i: int) -> None:
    """A line with intervals: bars while they can be told apart, else a band."""
    colour, values = COLOURS[i % len(COLOURS)], [100 * rate.value for rate in rates]
    low, high = ([100 * rate.display[end] for rate in rates] for end in (0, 1))
    if len(x) <= 25:
        bars = [[v - a for v, a in zip(values, low, strict=True)], [b - v for v, b in zip(values, high, strict=True)]]
        axes.errorbar(x, values, yerr=bars, label=_text(name), color=colour, marker=_MARKERS[i % len(_MARKERS)], markersize=5, capsize=3, clip_on=False)
    else:
        axes.plot(x, values, label=_text(name), color=colour)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _accuracy_axis(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, % of all samples")


def _unit(levels: Any) -> Any:
    return levels / 255


def _levels(unit: Any) -> Any:
    return unit * 255


def _text(text: str) -> str:
    """Without control characters; matplotlib would hide a legend entry that starts with an underscore."""
    return printable(text).lstrip("_")


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches without global state, saved to `path` when the block ends well."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a missing HOME or glyph is no news for the user
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png.getvalue())
