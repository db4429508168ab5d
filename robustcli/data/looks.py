"""A look at every image of a stored split: its size, depth and hash, or why it cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from robustcli.data.arrays import ArraySplits
from robustcli.data.check import check_shape
from robustcli.data.images import Decoder, Pixels, collect_faults
from robustcli.data.listings import ListedSplits, decoding_threads
from robustcli.data.stored import Stored
from robustcli.errors import DataError

_MODES = {"L": "grey", "RGB": "colour", "RGBA": "colour and alpha", "P": "palette", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Look:
    """One image that can be read.

    where: its file, or its index. digest: of its decoded pixels at their stored size.
    """

    where: str
    label: int
    size: tuple[int, int]
    depth: str
    digest: bytes


@dataclass
class SplitLooks:
    """What one stored split holds.

    labels: int64 [N]. images: those that can be read. faults: file or index -> why it cannot be read.
    """

    labels: Tensor
    images: list[Look] = field(default_factory=list)
    faults: list[DataError] = field(default_factory=list)

    def sizes(self) -> Counter[str]:
        """How many images have each size, as in 640x480."""
        return Counter(f"{look.size[0]}x{look.size[1]}" for look in self.images)

    def depths(self) -> Counter[str]:
        """How many images have each depth."""
        return Counter(look.depth for look in self.images)


def look_at(stored: Stored, name: str) -> SplitLooks:
    """Read every image of one stored split, and keep what it looks like."""
    if isinstance(stored, ListedSplits):
        return _files(stored, name)
    assert isinstance(stored, ArraySplits)
    return _arrays(stored, name)


def _files(stored: ListedSplits, name: str) -> SplitLooks:
    paths, labels = stored.listing(name).paths, stored.labels(name)
    decoder = replace(stored.decoder, size=None, ratio=1.0)
    found: dict[int, Look] = {}

    def look(index: int) -> None:
        found[index] = _file(decoder, paths[index], int(labels[index]))

    faults = collect_faults(len(paths), decoding_threads(stored.config), look)
    return SplitLooks(labels, [found[index] for index in sorted(found)], list(faults.values()))


def _file(decoder: Decoder, path: str, label: int) -> Look:
    pixels = decoder(path)
    mode, deep = decoder.stored_mode(path)
    depth = f"{16 if deep else 8}-bit {'grey' if deep else _MODES.get(mode, mode)}"
    return Look(path, label, (pixels.shape[1], pixels.shape[0]), depth, _digest(pixels))


def _arrays(stored: ArraySplits, name: str) -> SplitLooks:
    labels = stored.labels(name)
    try:
        pixels = stored.arrays[name][0]()
        if pixels.ndim != 4:  # other wrong shapes can still be looked at
            check_shape(pixels.shape[1:], where=f"{stored.where}: {name}")
    except DataError as error:
        return SplitLooks(labels, faults=[error])
    kind = str(pixels.dtype).removeprefix("torch.")
    looks = []
    for index, image in enumerate(pixels[: len(labels)].numpy()):
        depth = f"{kind}, {image.shape[0]} channels"
        size = image.shape[-1], image.shape[-2]
        looks.append(Look(f"{name}[{index}]", int(labels[index]), size, depth, _digest(image)))
    return SplitLooks(labels, looks)


def _digest(pixels: Pixels) -> bytes:
    shape = repr((pixels.shape, pixels.dtype.str)).encode()
    return hashlib.blake2b(shape + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Twins:
    """The same picture in several places: `where` of each, as in train/cat/1.png."""

    kind: str
    where: list[str]


def twins(splits: dict[str, SplitLooks]) -> list[Twins]:
    """Pictures with the same decoded pixels: in two splits, under two labels, or twice under one label."""
    places: dict[bytes, list[tuple[str, Look]]] = {}
    for name, looks in splits.items():
        for look in looks.images:
            places.setdefault(look.digest, []).append((name, look))
    return [_twins(found) for found in places.values() if len(found) > 1]


def _twins(found: Sequence[tuple[str, Look]]) -> Twins:
    where = [look.where if os.sep in look.where else f"{name}: {look.where}" for name, look in found]
    if len({look.label for _, look in found}) > 1:
        return Twins("under two labels", where)
    if len({name for name, _ in found}) > 1:
        return Twins("in two splits", where)
    return Twins("twice in one split", where)
