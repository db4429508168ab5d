"""Files that others may have replaced: only a regular one is opened, and opening never waits.

A FIFO without a writer would block for ever, and a device may give bytes without end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

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
