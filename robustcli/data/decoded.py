"""The two files of a decoded data set: `pixels.u8`, one array of all images, and `about.json`, which is written last and says that it is whole."""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcli.data.files import Listing
from robustcli.data.images import Decoder, Pixels, each, planes
from robustcli.data.split import Store
from robustcli.errors import DataError
from robustcli.store.atomic import fsync_dir, removed_on_failure, tmp_name, write_all, write_json
from robustcli.store.disk import explained, preflight

PIXELS, ABOUT = "pixels.u8", "about.json"
FORMAT = 2
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Source:
    """Files to decode, and the two questions that only a first run asks.

    listings: stored split -> its files.  decoder: knows the root.  threads: that decode.
    probe: (C, H, W) as far as a few files tell; 1 channel becomes 3 when another file has colour.
    digest: uint8 [N, C, H, W] -> digest of the data set.
    """

    listings: Mapping[str, Listing]
    decoder: Decoder
    threads: int
    probe: Callable[[], tuple[int, int, int]]
    digest: Callable[[Tensor], str]

    @cached_property
    def paths(self) -> list[str]:
        """All files, in the order of the rows."""
        return [path for listing in self.listings.values() for path in listing.paths]

    def image(self, index: int, side: tuple[int, int], *, grey: bool = False) -> Pixels:
        """uint8 [1 if grey else 3, H, W]. Raises DataError; _Colour for a colour image where grey ones are expected."""
        path = self.paths[index]
        decoded = self.decoder(path)
        if grey and decoded.ndim == 3:
            raise _Colour
        return planes(decoded, (3, *side), os.path.join(self.decoder.root, path))[: 1 if grey else 3]


@dataclass(frozen=True)
class Decoded:
    """store: uint8 [N, C, H, W], mapped; unreadable files are rows of zeros.  faults: of these, by row.  digest: of the data set."""

    store: Store
    faults: dict[int, DataError]
    digest: str


class _Colour(Exception):
    """A colour image among those that were taken for grey."""


def read(place: Path, source: Source) -> tuple[Decoded | None, str]:
    """What lies in the folder `place`; None and what is wrong with it, which is empty when there is nothing."""
    try:
        about = (place / ABOUT).read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    try:
        shape, bad, digest, written = _about(json.loads(about), len(source.paths))
        size, whole = os.path.getsize(place / PIXELS), math.prod(shape)
        if size != whole:
            return None, f"{PIXELS} has {size} of {whole} bytes"
        if os.stat(place / PIXELS).st_mtime_ns != written:
            return None, f"{PIXELS} was written to since"
        pixels = _mapped(place / PIXELS, shape)
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, f"{ABOUT} is damaged"
    # What hid a file may have passed since (permissions, a network disk); that changes neither its size nor its time.
    faults = each(len(bad), source.threads, lambda k: _only_try(source, bad[k], (shape[2], shape[3])))
    if len(faults) < len(bad):
        return None, f"{len(bad) - len(faults)} of {len(bad)} unreadable images can be read now"
    return Decoded(Store(pixels, mapped=True), {bad[k]: error for k, error in faults.items()}, digest), ""


def _only_try(source: Source, index: int, side: tuple[int, int]) -> None:
    source.image(index, side)


def _about(found: dict[str, object], count: int) -> tuple[tuple[int, int, int, int], list[int], str, int]:
    """Shape, rows of unreadable files, digest, time of the pixels in ns.

    Raises ValueError, TypeError or KeyError for anything that `build` would not have written.
    """
    shape, bad, digest, written = found["shape"], found["faults"], found["digest"], found["mtime_ns"]
    if not (
        isinstance(shape, list)
        and isinstance(bad, list)
        and isinstance(digest, str)
        and isinstance(written, int)
    ):
        raise TypeError("not what was written")
    if not all(type(n) is int for n in [*shape, *bad]):
        raise TypeError("not what was written")
    n, channels, height, width = shape
    if (
        n != count
        or channels not in (1, 3)
        or height < 1
        or width < 1
        or len(digest) != 64
        or not all(0 <= index < count for index in bad)
    ):
        raise ValueError("not what was written")
    return (n, channels, height, width), bad, digest, written


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The file as a tensor that nobody may write to. (A private writable map is refused by Linux when it is larger than the memory.)"""
    array = np.memmap(path, np.uint8, "r", shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def build(place: Path, source: Source) -> Decoded:
    """Decode all files into the folder `place`, whatever lies there.

    Raises:
        DataError: no image can be read, or the images are not square.
        ResourceError: E-DISK, E-WRITE; nothing is left then.
    """
    (place / ABOUT).unlink(missing_ok=True)
    channels, *side = source.probe()
    try:
        faults = _decode(place, source, (channels, side[0], side[1]))
    except _Colour:
        channels = 3
        faults = _decode(place, source, (channels, side[0], side[1]))
    shape = (len(source.paths), channels, *side)
    pixels = _mapped(place / PIXELS, shape)
    digest = source.digest(pixels)
    about = {
        "root": os.path.realpath(source.decoder.root),
        "shape": shape,
        "digest": digest,
        "faults": list(faults),
    }
    write_json(place / ABOUT, about | {"mtime_ns": os.stat(place / PIXELS).st_mtime_ns})
    return Decoded(Store(pixels, mapped=True), faults, digest)


def _decode(place: Path, source: Source, shape: tuple[int, int, int]) -> dict[int, DataError]:
    """Write the pixels and give the faults by row. Raises _Colour: C is 1 and an image has colour."""
    channels, *side = shape
    row, tmp, turn = math.prod(shape), place / tmp_name(), threading.Lock()
    need = len(source.paths) * row
    preflight(place, need)
    with explained(place, need), removed_on_failure(tmp):
        fd = os.open(tmp, _NEW_FILE, 0o600)
        try:
            os.ftruncate(fd, need)  # rows that nobody writes are zeros

            def job(index: int) -> None:
                image = source.image(index, (side[0], side[1]), grey=channels == 1).tobytes()
                with turn:  # written, not mapped: a full disk is then an error and not SIGBUS
                    os.lseek(fd, index * row, os.SEEK_SET)
                    write_all(fd, image)

            faults = each(len(source.paths), source.threads, job)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(tmp, place / PIXELS)
        fsync_dir(place)
    return faults
