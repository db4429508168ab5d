"""Test images beside the extra training images that are closest to them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustcli.regular import read_bytes
from robustcli.reporting.cells import Cell
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import WIDTH, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.tables import Table

NAME = "leakage"
_ACROSS = 3  # pairs in a line
_LIMIT = 1 << 24  # bytes of the picture
_COLUMNS = ("test", "test_file", "extra", "extra_file", "distance", "ratio", "features", "found")


@dataclass(frozen=True)
class Pair:
    """One test image and its nearest extra image.

    Args:
        test: id of the sample. extra: index of the extra image in its stored split.
        test_file, extra_file: "" for arrays.
        distance: root of the mean squared difference, in pixel units of [0, 1].
        ratio: the distance in distances to the nearest training image. features: the same by features.
        found: exact, pixels and features, as far as they call it a copy; "" for none.
        pixels: uint8 [H, W, C] of both; () where they are not drawn.
    """

    test: int
    test_file: str
    extra: int
    extra_file: str
    distance: float
    ratio: float
    features: float | None
    found: str
    pixels: tuple[Any, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One JSON object: all but the pixels."""
        return {name: getattr(self, name) for name in _COLUMNS}


def leakage_picture(pairs: Sequence[Pair], told: Mapping[str, Any], most: int) -> Picture:
    """A line of pairs for each three: test image left, nearest extra image right, and how near."""
    drawn = [pair for pair in pairs if pair.pixels][:most]
    lines, png = -(-len(drawn) // _ACROSS) or 1, io.BytesIO()
    with saved_figure(png, WIDTH, 0.9 + 1.25 * lines, _title(told)) as figure:
        grid = list(figure.subplots(lines, 2 * _ACROSS, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for k, pair in enumerate(drawn):
            for axes, image, text in zip(grid[2 * k : 2 * k + 2], pair.pixels, _texts(pair), strict=True):
                axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.set_title(text, fontsize=7, loc="center")
    rows: list[list[Cell]] = [[getattr(pair, name) for name in _COLUMNS] for pair in pairs]
    return _picture(told, png.getvalue(), Table(NAME, list(_COLUMNS), rows))


def _texts(pair: Pair) -> tuple[str, str]:
    return f"test {pair.test}", f"{pair.distance:.3f} ({pair.ratio:.2f}x)"


def _title(told: Mapping[str, Any]) -> str:
    return f"Test images and the nearest of {told.get('extra', '?')} extra images: {_counts(told)}."


def _counts(told: Mapping[str, Any]) -> str:
    counts = [f"{told.get('exact', '?')} exact copies"]
    counts += [f"{told[name]['near']} near by {name}" for name in ("pixels", "features") if name in told]
    return ", ".join(counts)


def _picture(told: Mapping[str, Any], png: bytes, table: Table) -> Picture:
    caption = (
        f"Each pair is a test image and the nearest image of data.extra, the nearest pairs first: "
        f"{_counts(told)} of {told.get('test', '?')} test images. The number is the distance in pixel units, "
        "and in brackets the same in distances to the nearest training image."
    )
    return Picture(NAME, "training", "Test images among the extra images", caption, png, table)


def picture(dossier: Dossier) -> Picture | str | None:
    """The picture that a training with extra data has left."""
    told, path = dossier.document.get("leakage"), dossier.path / "plots" / f"{NAME}.png"
    if not isinstance(told, Mapping) or not path.is_file():
        return None
    try:
        lines = read_bytes(path.with_suffix(".csv"), _LIMIT).decode()
        header, *rows = csv.reader(io.StringIO(lines))
        return _picture(told, read_bytes(path, _LIMIT), Table(NAME, header, rows))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        return f"Test images among the extra images: {error}."
