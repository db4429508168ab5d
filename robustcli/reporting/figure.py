"""What all drawings share: style, axes of accuracy and of radius, and the way to a file."""

from __future__ import annotations

import io
import logging
import os
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robustcli.errors import printable
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_importing = threading.Lock()

#: Where a drawing goes: into a file, which is written atomically and whose folder is made, or into memory.
Target = Path | io.BytesIO
#: (x, accuracy, low, high): x is a radius or an epoch, the others are fractions. The interval is [low, high].
Point = Sequence[float]
#: Inches. A figure of this width is read on a telephone, on a page and on paper.
WIDTH = 5.0
_TITLE_WIDTH = 13  # characters of a title per inch
_TITLE_LINES = 4

#: Okabe and Ito's colours, told apart by colour-blind readers too (their yellow is too pale for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLE: Any = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "figure.constrained_layout.w_pad": 0.1,
    "savefig.dpi": 192,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


@contextmanager
def saved_figure(target: Target, width: float, height: float, title: str = "") -> Iterator[Figure]:
    """A figure of `width` x `height` inches, saved to `target` when the block ends without an error.

    title: stands above all panels, wrapped; one of too many lines is shortened.
    No global state of matplotlib changes. Raises ResourceError when `target` cannot be written.
    """
    matplotlib = matplotlib_package()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(_wrapped(title, width), x=0.02, ha="left", fontsize=11)
        yield figure
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(png, format="png", metadata={"Software": None})
    write_picture(target, png.getvalue())


def _wrapped(title: str, width: float) -> str:
    """The title in lines that fit into `width` inches."""
    size = int(_TITLE_WIDTH * width)
    return "\n".join(textwrap.wrap(plain(title), size, max_lines=_TITLE_LINES, placeholder=" …"))


def matplotlib_package() -> ModuleType:
    """The package; pictures are drawn by its Agg, so a backend in MPLBACKEND means nothing here.

    A name that it does not know would end its import. Another thread may import it at the same time.
    """
    # A missing HOME is no news for the user. Nor is a glyph that the font lacks, see above.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with _importing:
        backend = os.environ.pop("MPLBACKEND", None)
        try:
            import matplotlib
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
    return matplotlib


def write_picture(path: Target, png: bytes) -> None:
    """Write a file atomically, after making its folder. Raises ResourceError."""
    if isinstance(path, io.BytesIO):
        path.write(png)
        return
    with explained(path):
        path.parent.mkdir(exist_ok=True)  # without its parents: a run that was removed is not made again
    write_atomic(path, png)


def plain(text: str) -> str:
    """Without control characters, and without leading underscores, which keep a name out of a legend."""
    return printable(text).lstrip("_")


def accuracy_axis(axes: Axes) -> None:
    """0 to 100 percent, upwards."""
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, % of all samples")


def eps_scale(norm: str) -> int:
    """The factor from a radius to its place on the axis: 255 for linf, in steps of a pixel, else 1."""
    return 255 if norm == "linf" else 1


def eps_axis(axes: Axes, norm: str) -> None:
    """Radii from left to right, multiplied by `eps_scale`; for linf, an axis on top has them as they are."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(left=0)
    if norm == "l0":
        axes.set_xlabel("eps (l0, pixels that may change)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    if norm != "linf":
        axes.set_xlabel(f"eps ({norm}, pixels in [0, 1])")
        return
    axes.set_xlabel("eps x 255 (linf)")
    top = axes.secondary_xaxis("top", functions=(_from_levels, _to_levels))
    top.xaxis.set_major_locator(MaxNLocator(5))
    top.set_xlabel("eps (linf, pixels in [0, 1])")


def _from_levels(levels: Any) -> Any:
    return levels / 255


def _to_levels(eps: Any) -> Any:
    return eps * 255
