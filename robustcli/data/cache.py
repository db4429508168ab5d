"""`data.storage=cached`: all files of a data set decoded once into one array on the disk, which every later run maps into its memory."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcli.data.decoded import FORMAT, Decoded, Source, build, read
from robustcli.errors import LockError, ResourceError, printable
from robustcli.runtime.signals import heed
from robustcli.store.atomic import TMP_PREFIX
from robustcli.store.disk import explained
from robustcli.store.lock import RunLock

_POLL = 0.1  # seconds between two attempts at the lock
_HINT = "choose another folder with data.cache, data.storage=stream, or a smaller data.size"


def cache_folder(chosen: str | None) -> Path:
    """`chosen`, else $XDG_CACHE_HOME/robustcli, else ~/.cache/robustcli. Raises ResourceError: no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if chosen is None and os.path.isabs(base):  # a relative one is to be ignored, says the standard
        return Path(base) / "robustcli"
    try:
        return Path("~/.cache/robustcli" if chosen is None else chosen).expanduser()
    except RuntimeError as error:
        raise ResourceError(
            "there is no home folder for decoded images",
            where="data.cache",
            hint="name a folder in full",
            code="E-WRITE",
        ) from error


def load(folder: Path, source: Source) -> tuple[Decoded, list[str]]:
    """The decoded images in `folder`/decoded/<key>/ and notes; made first when they are not there, or not whole.

    One process decodes while the others wait for it. Whatever moment it is killed at, what it leaves is never taken for whole.

    Raises:
        DataError: no image can be read, or the images are not square.
        ResourceError: no room (E-DISK), or a folder that cannot be written (E-WRITE).
    """
    place = folder / "decoded" / key(source)
    found, _ = read(place, source)
    notes, how = [], "found"
    if found is None:
        with _hinted(), explained(place):
            place.mkdir(parents=True, exist_ok=True)
            with _alone(place) as locked:
                found, damage = read(place, source)
                if found is None:
                    started = time.monotonic()
                    if locked:
                        _sweep(place)
                    found = build(place, source)
                    how = f"decoded now in {time.monotonic() - started:.0f} s"
                    notes += [f"cache: {damage}; decoded again"] if damage else []
    count, _, height, width = found.store.pixels.shape
    return found, [*notes, printable(f"storage: cached, {count} images of {height}x{width}, {place} ({how})")]


def key(source: Source) -> str:
    """SHA-256 (hex) over all that decides pixels and digest: format, Pillow, decoder, splits, classes, labels, and path, size and time of each file."""
    from PIL import __version__

    decoder, root = source.decoder, os.path.realpath(source.decoder.root)
    state = hashlib.sha256(json.dumps([FORMAT, __version__, decoder.size, decoder.ratio, root]).encode())
    for part, listing in source.listings.items():
        state.update(json.dumps([part, listing.classes, listing.labels]).encode())
        for path in listing.paths:
            try:
                found = os.stat(os.path.join(root, path))
                age = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:
                age = "unreadable"
            state.update(os.fsencode(path) + b"\0" + age.encode() + b"\n")
    return state.hexdigest()


@contextmanager
def _hinted() -> Iterator[None]:
    """The runtime's ResourceErrors speak of --out; here data.cache says where to write."""
    try:
        yield
    except ResourceError as error:
        raise ResourceError(error.what, where=error.where, hint=_HINT, code=error.code) from error


@contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Wait until no other process decodes into this folder. False where the file system has no locks: then each decodes, which does no harm."""
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


def _sweep(place: Path) -> None:
    """Remove what killed processes have left. We hold the lock, so nobody writes it."""
    for left in place.glob(f"{TMP_PREFIX}*"):
        left.unlink(missing_ok=True)
