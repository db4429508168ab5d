"""Images in a directory of the user's: where they lie, how they are split, how large they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import Image

from robustcli.config.sections import DataConfig
from robustcli.data.datasets import load_data
from robustcli.data.files import entries, folders, is_image
from robustcli.data.layout.words import part_inside
from robustcli.data.listings import ListedSplits
from robustcli.errors import DataError

_USUAL = ("data", "dataset", "datasets", "images", "photos")  # looked at before other folders
_SIZES = (32, 64, 128, 224)  # sides that networks are made for
_FEW = 200  # images whose size is looked at
_LOOKED = 50  # entries of a folder that are looked at for images


@dataclass(frozen=True)
class Found:
    """A data set in a folder.

    Args:
        place: the folder, relative to where was looked; "." for that folder itself.
        counts: images of each stored split. classes: their names.
        size: side to train at, pixels; None where all images have one size that can stay.
        sizes: width x height as stored, in words.
    """

    place: str
    counts: dict[str, int]
    classes: tuple[str, ...]
    size: int | None
    sizes: str

    @property
    def told(self) -> str:
        """In one sentence."""
        images = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"{len(self.classes)} classes, {images} images, {self.sizes}"


def find_data(root: Path) -> tuple[Found | None, list[str]]:
    """The first data set below `root`, and why folders that hold images are none.

    Raises DataError where `root` cannot be listed.
    """
    reasons: list[str] = []
    for place in _places(root):
        try:
            return _described(root, place), reasons
        except DataError as error:
            reasons.append(f"{place}: {error.what}; {error.hint}".rstrip("; "))
    return None, reasons


def _places(root: Path) -> Iterator[str]:
    """Folders that may hold a data set: `root` where it holds splits, then those in it."""
    names = folders(root, ())
    if any(part_inside(name) for name in names if _holds_classes(root / name)):
        yield "."
        return
    for name in sorted(names, key=lambda name: (name not in _USUAL, name)):
        inner = folders(root / name, ())
        if _holds_classes(root / name) or any(_holds_classes(root / name / below) for below in inner):
            yield name


def _holds_classes(folder: Path) -> bool:
    """Whether folders in it hold images."""
    below = [entries(folder / name)[:_LOOKED] for name in folders(folder, ())]
    return any(is_image(entry.name) for entry in chain.from_iterable(below))


def _described(root: Path, place: str) -> Found:
    """The data set in a folder, without reading its pixels. Raises DataError where it is none."""
    stored = load_data(DataConfig(name=f"folder:{root / place}"), parts=()).stored
    assert isinstance(stored, ListedSplits)
    listed = {name: stored.listing(name).paths for name in stored.names}
    paths = [os.path.join(stored.decoder.root, path) for paths in listed.values() for path in paths]
    sizes = _sizes(paths[:: max(1, len(paths) // _FEW)])
    counts = {name: len(paths) for name, paths in listed.items()}
    return Found(place, counts, tuple(stored.classes), _side(sizes), _told(sizes))


def _sizes(paths: Sequence[str]) -> Counter[tuple[int, int]]:
    """How many images have each (width, height); those that cannot be read count for none."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes[image.size] += 1
        except (OSError, ValueError):
            continue
    if not sizes:
        raise DataError("no image can be read", hint="look at them with `robustcli data check`")
    return sizes


def _side(sizes: Counter[tuple[int, int]]) -> int | None:
    """The side to train at: None for small squares of one size, else one that networks are made for."""
    (width, height), _ = sizes.most_common(1)[0]
    if len(sizes) == 1 and width == height <= _SIZES[1]:
        return None
    smaller = min(width, height)
    return max((side for side in _SIZES if side <= smaller), default=smaller)


def _told(sizes: Counter[tuple[int, int]]) -> str:
    (width, height), _ = sizes.most_common(1)[0]
    return f"mostly {width}x{height}" if len(sizes) > 1 else f"all {width}x{height}"
