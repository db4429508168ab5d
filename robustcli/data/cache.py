"""`data.storage=cached`: all files of a data set decoded once into one file, which later runs map."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcli.data.decoded import FORMAT, Decoded, Source, decode_into, read_decoded
from robustcli.data.images import Decoder
from robustcli.errors import LockError, ResourceError, printable
from robustcli.runtime.signals import heed
from robustcli.store.atomic import TMP_PREFIX
from robustcli.store.disk import explained
from robustcli.store.lock import RunLock

_POLL = 0.1  # seconds between two attempts at the lock
_HINT = "choose another folder with data.cache, data.storage=stream, or a smaller data.size"


def cache_folder(chosen: str | None) -> Path:
    """`chosen`, else $XDG_CACHE_HOME/robustcli, else ~/.cache/robustcli.

    Raises:
        ResourceError: there is no home folder.
    """
    if chosen is None:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if os.path.isabs(base):  # a relative one is to be ignored, says the standard
            return Path(base) / "robustcli"
        chosen = "~/.cache/robustcli"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise ResourceError(
            "there is no home folder for decoded images",
            where="data.cache",
            hint="name a folder in full",
            code="E-WRITE",
        ) from error


def load(folder: Path, source: Source) -> tuple[Decoded, list[str]]:
    """The decoded images in `folder`/decoded/<key>/, and notes.

    Images that are missing or not whole are decoded first.
    One process decodes while the others wait for it. It may be killed at any moment: what it leaves behind is
    never taken for whole.

    Raises:
        DataError: no image can be read, or the images are not square.
        ResourceError: no room (E-DISK), or a folder that cannot be written (E-WRITE).
    """
    place = folder / "decoded" / cache_key(source)
    decoded, _ = read_decoded(place, source)
    notes: list[str] = []
    how = "found"
    if decoded is None:
        decoded, notes, how = _wait_or_decode(place, source)
    count, _, height, width = decoded.store.pixels.shape
    note = printable(f"storage: cached, {count} images of {height}x{width}, {place} ({how})")
    return decoded, [*notes, note]


def _wait_or_decode(place: Path, source: Source) -> tuple[Decoded, list[str], str]:
    """The images that another process decodes meanwhile, or else that this one does; notes; how they came."""
    with _hinted(), explained(place):
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place) as locked:
            decoded, damage = read_decoded(place, source)
            if decoded is not None:
                return decoded, [], "found"
            started = time.monotonic()
            if locked:
                _remove_leftovers(place)
            decoded = decode_into(place, source)
            how = f"decoded now in {time.monotonic() - started:.0f} s"
    if damage:
        return decoded, [f"cache: {damage}; decoded again"], how
    return decoded, [], how


def cache_key(source: Source) -> str:
    """SHA-256 (hex) over all that decides the pixels and the digest.

    That is: the format of the file, Pillow's version, the decoder, the splits, their classes and labels, and
    the path, size and time of each file.
    """
    from PIL import __version__

    decoder, root = source.decoder, os.path.realpath(source.decoder.root)
    about: list[object] = [FORMAT, __version__, decoder.size, decoder.ratio, root]
    if decoder.white != 65535 or decoder.grey or source.colour:
        about += [decoder.white, decoder.grey, source.colour]
    state = hashlib.sha256(json.dumps(about).encode())
    for part, listing in source.listings.items():
        state.update(json.dumps([part, listing.classes, listing.labels]).encode())
        for path in listing.paths:
            age = _size_and_time(decoder, path)
            state.update(os.fsencode(path) + b"\0" + age.encode() + b"\n")
    return state.hexdigest()


def _size_and_time(decoder: Decoder, path: str) -> str:
    try:
        size, time_ns = decoder.stamp(path)
    except OSError:
        return "unreadable"
    return f"{size} {time_ns}"


@contextmanager
def _hinted() -> Iterator[None]:
    """The runtime's ResourceErrors speak of --out; here data.cache says where to write."""
    try:
        yield
    except ResourceError as error:
        raise ResourceError(error.what, where=error.where, hint=_HINT, code=error.code) from error


@contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Wait until no other process decodes into this folder.

    Gives False where the file system has no locks. Each process decodes then, which does no harm.
    """
    lock = None
    while lock is None:
        try:
            lock = RunLock(place)
        except LockError:
            heed()
            time.sleep(_POLL)
        except ResourceError as error:
            if error.code != "E-LOCK-FS":
                raise
            break
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def _remove_leftovers(place: Path) -> None:
    """Remove the temporary files of killed processes. We hold the lock, so nobody writes them."""
    for path in place.glob(f"{TMP_PREFIX}*"):
        path.unlink(missing_ok=True)
