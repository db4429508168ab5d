"""The two files of a decoded data set.

`pixels.u8` is one array of all images. `about.json` is written last and says that the array is whole.
"""

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

from robustcli.data.files import Listing, all_paths
from robustcli.data.images import Decoder, Pixels, collect_faults, planes
from robustcli.data.split import Store
from robustcli.errors import DataError
from robustcli.store.atomic import fsync_dir, removed_on_failure, tmp_name, write_all, write_json
from robustcli.store.disk import explained, preflight

PIXELS, ABOUT = "pixels.u8", "about.json"
FORMAT = 2
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
Side = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Files to decode, and the two questions that only the run that decodes them asks.

    listings: stored split -> its files.
    decoder: file -> pixels; it knows the root.
    threads: that decode.
    probe: gives (C, H, W) as far as a few files tell. One channel becomes three when another file has colour.
    digest: uint8 [N, C, H, W] -> digest of the data set.
    colour: whether grey images become three channels, because other images have colour.
    """

    listings: Mapping[str, Listing]
    decoder: Decoder
    threads: int
    probe: Callable[[], tuple[int, int, int]]
    digest: Callable[[Tensor], str]
    colour: bool = False

    @cached_property
    def paths(self) -> list[str]:
        """All files, in the order of the rows."""
        return all_paths(self.listings)

    def image(self, index: int, side: Side, *, grey: bool = False) -> Pixels:
        """uint8 [3, H, W], or [1, H, W] with `grey`.

        Raises:
            DataError: the image cannot be read, or has another size.
            _Colour: a colour image, with `grey`.
        """
        path = self.paths[index]
        decoded = self.decoder(path)
        if grey and decoded.ndim == 3:
            raise _Colour
        colour = planes(decoded, (3, *side), os.path.join(self.decoder.root, path))
        if grey:
            return colour[:1]
        return colour


@dataclass(frozen=True)
class Decoded:
    """A decoded data set.

    store: uint8 [N, C, H, W], mapped; unreadable files are rows of zeros.
    faults: row -> why its file cannot be read.
    digest: of the data set.
    """

    store: Store
    faults: dict[int, DataError]
    digest: str


class _Colour(Exception):
    """A colour image among those that were taken for grey."""


@dataclass(frozen=True)
class _About:
    """What `about.json` says.

    shape: of the array of pixels, [N, C, H, W].
    faults: rows of unreadable files.
    digest: of the data set.
    mtime_ns: when the pixels were written.
    """

    shape: tuple[int, int, int, int]
    faults: list[int]
    digest: str
    mtime_ns: int


def read_decoded(place: Path, source: Source) -> tuple[Decoded | None, str]:
    """(the decoded data set in the folder `place`, ""), or (None, what is wrong with it).

    Nothing is wrong where nothing has been decoded yet: (None, "").
    """
    try:
        text = (place / ABOUT).read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    try:
        about = _parsed(json.loads(text), len(source.paths))
        damage = _damage(place / PIXELS, about)
        if damage:
            return None, damage
        pixels = _mapped(place / PIXELS, about.shape)
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, f"{ABOUT} is damaged"
    faults = _still_unreadable(source, about)
    if len(faults) < len(about.faults):
        better = len(about.faults) - len(faults)
        return None, f"{better} of {len(about.faults)} unreadable images can be read now"
    return Decoded(Store(pixels, mapped=True), faults, about.digest), ""


def _damage(path: Path, about: _About) -> str:
    """What is wrong with the array of pixels; "" when nothing is."""
    size, whole = os.path.getsize(path), math.prod(about.shape)
    if size != whole:
        return f"{PIXELS} has {size} of {whole} bytes"
    if os.stat(path).st_mtime_ns != about.mtime_ns:
        return f"{PIXELS} was written to since"
    return ""


def _still_unreadable(source: Source, about: _About) -> dict[int, DataError]:
    """Row -> why its file cannot be read now, of the files that could not be read when they were decoded.

    What hid a file may have passed since (permissions, a network disk). That changes neither its size nor its
    time, so the key of the cache does not see it.
    """
    rows, side = about.faults, about.shape[2:]

    def read_again(k: int) -> None:
        source.image(rows[k], side)

    faults = collect_faults(len(rows), source.threads, read_again)
    return {rows[k]: error for k, error in faults.items()}


def _parsed(stored: dict[str, object], count: int) -> _About:
    """What `decode_into` has written for `count` files.

    Raises:
        ValueError, TypeError, KeyError: it has not written that.
    """
    shape, faults = stored["shape"], stored["faults"]
    digest, mtime_ns = stored["digest"], stored["mtime_ns"]
    if not (isinstance(shape, list) and isinstance(faults, list)):
        raise TypeError("not what was written")
    if not (isinstance(digest, str) and isinstance(mtime_ns, int)):
        raise TypeError("not what was written")
    if not all(type(n) is int for n in [*shape, *faults]):
        raise TypeError("not what was written")
    n, channels, height, width = shape
    if n != count or channels not in (1, 3) or height < 1 or width < 1 or len(digest) != 64:
        raise ValueError("not what was written")
    if not all(0 <= row < count for row in faults):
        raise ValueError("not what was written")
    return _About((n, channels, height, width), faults, digest, mtime_ns)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The file as a tensor that nobody may write to.

    A private writable map would do too, but Linux refuses it when it is larger than the memory.
    """
    array = np.memmap(path, np.uint8, "r", shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def decode_into(place: Path, source: Source) -> Decoded:
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
    row_bytes, tmp, turn = math.prod(shape), place / tmp_name(), threading.Lock()
    need = len(source.paths) * row_bytes
    preflight(place, need)
    with explained(place, need), removed_on_failure(tmp):
        fd = os.open(tmp, _NEW_FILE, 0o600)
        try:
            os.ftruncate(fd, need)  # rows that nobody writes are zeros

            def write_row(index: int) -> None:
                image = source.image(index, (side[0], side[1]), grey=channels == 1).tobytes()
                with turn:  # written, not mapped: a full disk is then an error and not SIGBUS
                    os.lseek(fd, index * row_bytes, os.SEEK_SET)
                    write_all(fd, image)

            faults = collect_faults(len(source.paths), source.threads, write_row)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(tmp, place / PIXELS)
        fsync_dir(place)
    return faults
