"""Disk space: ask before writing, and explain every failed write as one line with exit code 6."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcli.errors import ResourceError

DISK_FULL = (
    "E-DISK"  # no space, file size limit, quota: freeing space helps, so a save prunes and retries once
)
NOT_WRITTEN = "E-WRITE"  # read-only, no permission, other device, I/O error: a retry would not help
FULL_ERRNOS = {getattr(errno, name, None) for name in ("ENOSPC", "EFBIG", "EDQUOT")} - {None}
_FREE_SOME = "free some space, or choose another directory with --out"
_HINTS = {
    "EFBIG": "a file size limit was hit: see `ulimit -f`",
    "EDQUOT": "your disk quota is used up: see `quota`",
}


def free_bytes(path: Path) -> int | None:
    """Bytes a normal user may still write on the file system of `path`, or of its nearest existing parent.

    None when the system does not tell.
    """
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def preflight(path: Path, need: int) -> None:
    """free(path) >= need, both in bytes; an unknown amount of free space passes.

    Raises ResourceError E-DISK: ``need X MB, have Y MB at PATH``.
    """
    free = free_bytes(path)
    if free is not None and free < need:
        raise _full(need, free, path, _FREE_SOME)


def disk_error(error: OSError, path: Path, need: int = 0) -> ResourceError:
    """`error` as a ResourceError (exit 6). need: bytes that were to be written, 0 when unknown."""
    if error.errno in FULL_ERRNOS:
        name = errno.errorcode.get(error.errno or 0, "")
        return _full(need, free_bytes(path), path, _HINTS.get(name, _FREE_SOME))
    reason = error.strerror or type(error).__name__
    hint = "check permissions and mounts, or choose another directory with --out"
    return ResourceError(f"could not write: {reason}", where=str(path), hint=hint, code=NOT_WRITTEN)


@contextmanager
def explained(path: Path, need: int = 0) -> Iterator[None]:
    """Any OSError inside the block becomes the ResourceError of `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, need) from error


def _full(need: int, free: int | None, path: Path, hint: str) -> ResourceError:
    have = "an unknown amount" if free is None else f"{free / 1e6:.1f} MB"
    return ResourceError(
        f"disk full: need {need / 1e6:.1f} MB, have {have} at {path}", hint=hint, code=DISK_FULL
    )
