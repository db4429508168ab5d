"""Pictures of records, as PNG files: accuracy against eps, and the course of a training run."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.errors import printable
from robustcli.proportions import Rate
from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import format_eps
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by colour-blind readers too (their yellow is too pale for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"
_FEW = 25  # more points than this are drawn without markers
Point = Sequence[float]
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


def eps_points(rows: Sequence[EvalRow]) -> list[Point]:
    """(eps, accuracy, low, high) of rows of one model, by radius: the lowest robust accuracy, at 0 the clean one; Wilson."""
    rates: dict[float, Rate] = {}
    for row in rows:
        if (
            row.robust is not None
            and row.eps > 0
            and (row.eps not in rates or row.robust.value < rates[row.eps].value)
        ):
            rates[row.eps] = row.robust
    if rows:
        rates[0.0] = rows[0].clean
    return [(eps, rate.value, *rate.display) for eps, rate in sorted(rates.items())]


def eps_curve(
    path: Path,
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str = "accuracy against eps",
    norm: str = "linf",
) -> None:
    """Accuracy with its 95 % interval against eps, one line per name.

    curves: name -> points (eps, accuracy, low, high): the radius in pixel units of [0, 1], the rest fractions (`eps_points`
    makes them from records). Raises ValueError when there is no point, ResourceError when `path` cannot be written.
    """
    if not any(curves.values()):
        raise ValueError("no points to draw")
    scale = 255 if norm == "linf" else 1  # 1/255 is one step of a pixel
    with _figure(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            _line(axes, [(eps * scale, *rest) for eps, *rest in points], name, i)
        _accuracy_axis(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("eps x 255 (linf)" if scale > 1 else f"eps ({norm}, pixels in [0, 1])")
        if scale > 1:
            axes.secondary_xaxis("top", functions=(_unit, _levels)).set_xlabel("eps (linf, pixels in [0, 1])")
        axes.set_title(f"{_text(title)}, with 95 % interval")
        axes.legend(loc="best")


def training_curves(path: Path, rows: Sequence[TrainRow], *, title: str = "training") -> None:
    """Loss and its parts, validation accuracies with 95 % Wilson intervals (FGSM's where it was watched), learning rate against the epoch.

    Raises ValueError without rows, ResourceError when `path` cannot be written.
    """
    if not rows:
        raise ValueError("no training rows to draw")
    measured = any(row.clean is not None or row.robust is not None for row in rows)
    with _figure(path, 9.6 if measured else 6.4, 4.8) as figure:
        panels = figure.subplot_mosaic(
            [["loss", "accuracy"], ["rate", "accuracy"]] if measured else [["loss"], ["rate"]],
            height_ratios=[5, 2],
        )
        _losses(panels["loss"], rows)
        panels["loss"].set_title(_text(title))
        panels["rate"].plot(
            [row.epoch for row in rows],
            [row.lr for row in rows],
            color="#666666",
            marker="." if len(rows) <= _FEW else "",
        )
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
        marker = _MARKERS[i % len(_MARKERS)] if len(rows) <= _FEW else ""
        axes.plot(
            [row.epoch for row in rows],
            values,
            label=_text(name),
            color=COLOURS[i % len(COLOURS)],
            marker=marker,
            markersize=4,
        )
    axes.set_ylabel("mean training loss")
    if all(value >= 0 for values in series.values() for value in values):
        axes.set_ylim(bottom=0)
    axes.legend(loc="best")


def _validation(axes: Axes, rows: Sequence[TrainRow]) -> None:
    drawn = [
        ("clean", [(row.epoch, row.clean) for row in rows if row.clean is not None]),
        (f"robust: {_threat(rows)}", [(row.epoch, row.robust) for row in rows if row.robust is not None]),
        (
            "fgsm: one large step",
            [
                (row.epoch, Rate(round(row.fgsm_acc * row.n), row.n))
                for row in rows
                if row.fgsm_acc is not None
            ],
        ),
    ]
    for i, (name, points) in enumerate(drawn):
        if points:
            _line(axes, [(epoch, rate.value, *rate.display) for epoch, rate in points], name, i)
    _accuracy_axis(axes)
    axes.set_xlabel("epoch")
    sizes = sorted({row.n for row in rows if row.n})
    axes.set_title(
        f"validation, n = {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''}, with 95 % interval"
    )
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.11), fontsize=9
    )  # below: a collapse may be anywhere in the panel


def _threat(rows: Sequence[TrainRow]) -> str:
    last = rows[-1]
    steps = last.params.get("steps")
    return f"{last.attack}{'' if steps is None else f'-{steps}'}, {last.norm} {format_eps(last.eps, last.norm)}".strip(
        ", "
    )


def _line(axes: Axes, points: Sequence[Sequence[float]], name: str, i: int) -> None:
    """Points (x, accuracy, low, high): a line with bars while they can be told apart, else with a band."""
    colour = COLOURS[i % len(COLOURS)]
    x = [point[0] for point in points]
    value, low, high = ([100 * point[k] for point in points] for k in (1, 2, 3))
    if len(points) <= _FEW:
        below, above = (
            [max(0.0, b - a) for a, b in zip(*pair, strict=True)] for pair in ((low, value), (value, high))
        )
        marker = _MARKERS[i % len(_MARKERS)]
        axes.errorbar(
            x,
            value,
            yerr=[below, above],
            label=_text(name),
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            clip_on=False,
        )
    else:
        axes.plot(x, value, label=_text(name), color=colour)
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
    logging.getLogger("matplotlib").setLevel(
        logging.ERROR
    )  # a missing HOME is no news for the user, nor a missing glyph below
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(png, format="png", metadata={"Software": None})
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png.getvalue())
