"""Files that others may have replaced: only a regular one is opened, and opening never waits.

A FIFO without a writer would block for ever, and a device may give bytes without end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from robustcli.errors import CheckpointError

#: A flag of `open_regular`: a link is an error.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, flags: int = 0, mode: int = 0o666) -> int:
    """The descriptor of a regular file, opened with further flags of os.open. Raises OSError for another."""
    fd = os.open(path, _READ | flags, mode)
    try:
        check_regular(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def check_regular(fd: int) -> None:
    """Raises OSError for an open file that is no regular one: a FIFO, a directory, a device."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.ENXIO, "not a regular file")


def read_bytes(path: Path, limit: int, flags: int = 0) -> bytes:
    """The bytes of a regular file. Raises OSError, also for one of more than `limit` bytes."""
    with os.fdopen(open_regular(path, flags), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size} bytes, more than the limit of {limit}")
        return file.read(size)


def strict_loads(text: bytes) -> Any:
    """JSON as RFC 8259 has it: no repeated key, no NaN or Infinity.

    Raises ValueError, or RecursionError for a text that is nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError("a key is repeated")
        return out

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def read_regular(path: Path, limit: int, *, exactly: int | None = None) -> bytes:
    """The bytes of a regular file, whose size is checked before anything is read.

    Follows no link and never waits for a FIFO.

    Raises CheckpointError: E-CKPT-MISSING (no such file), E-CKPT-HASH (size differs from `exactly`),
    E-CKPT-FORMAT (link, directory, device, longer than `limit` bytes, unreadable).
    """
    try:
        with os.fdopen(open_regular(path, NO_LINK), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(size, path, limit, exactly)
            return file.read(size)
    except FileNotFoundError as error:
        raise CheckpointError("no such file", where=str(path), code="E-CKPT-MISSING") from error
    except OSError as error:
        _bad(f"cannot read: {error.strerror}", str(path), error)
    except ValueError as error:  # a NUL in the name
        _bad(f"cannot read: {error}", str(path), error)


def _check_size(size: int, path: Path, limit: int, exactly: int | None) -> None:
    if exactly is not None and size != exactly:
        raise CheckpointError(
            f"expected {exactly} bytes, got {size}",
            where=str(path),
            hint="the file is damaged",
            code="E-CKPT-HASH",
        )
    if size > limit:
        _bad(f"{size} bytes, more than the limit of {limit}", str(path))


def _bad(what: str, where: str, cause: BaseException | None = None) -> NoReturn:
    raise CheckpointError(
        what, where=where, hint="the file is damaged or not what its name says", code="E-CKPT-FORMAT"
    ) from cause
