"""Files that are either the old or the new content, never half of one, whatever kills the process."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from robustcli.errors import NumericsError
from robustcli.store.disk import disk_error, explained

TMP_PREFIX = ".tmp-"  # everything that a killed process may leave behind starts like this
_NEW_FILE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def tmp_name(label: str = "") -> str:
    """A fresh name for a temporary file or directory of this process."""
    return f"{TMP_PREFIX}{label}{os.getpid()}-{secrets.token_hex(4)}"


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`; a short write goes on until an error names its reason. Raises OSError."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def write_new(path: Path, data: bytes, passed: Callable[[str], None] = lambda point: None) -> None:
    """Create `path` (mode 0600, must not exist, no link followed), write, fsync. Raises OSError.

    passed: told ``after-write`` and ``after-fsync`` (fail points of the tests).
    """
    fd = os.open(path, _NEW_FILE, 0o600)
    try:
        write_all(fd, data)
        passed("after-write")
        os.fsync(fd)
    finally:
        os.close(fd)
    passed("after-fsync")


def fsync_dir(path: Path) -> None:
    """Make the entries of a directory durable. Systems that cannot open a directory (Windows) have nothing to do."""
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """path = data, all or nothing: temporary file in the same directory, fsync, rename, fsync of the directory.

    Raises ResourceError: E-DISK when there is no room, E-WRITE for anything else; the old content is untouched.
    """
    tmp = path.with_name(tmp_name())
    with explained(path, len(data)), removed_on_failure(tmp):
        write_new(tmp, data)
        os.replace(tmp, path)
        fsync_dir(path.parent)


def overwrite(path: Path, data: bytes) -> None:
    """Replace the content of an existing file in place: not atomic, but needs no new space. Raises OSError; follows no link."""
    fd = os.open(
        path,
        os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0),
    )
    try:
        write_all(fd, data)
        os.ftruncate(fd, len(data))
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented strict JSON through `write_atomic`. Raises also NumericsError: NaN or Inf inside."""
    write_atomic(path, strict_json(value, indent=1, where=str(path)).encode() + b"\n")


def strict_json(value: Any, *, indent: int | None = None, where: str = "") -> str:
    """JSON with sorted keys and without NaN or Inf (no reader agrees on them). Raises NumericsError E-NAN naming the key."""
    try:
        return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
    except ValueError as error:
        found = _not_finite(value, "")
        if found is None:
            raise
        raise NumericsError(
            f"{found} is not a finite number", where=where, hint="nothing was written"
        ) from error


def _not_finite(value: Any, path: str) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return path or "the value"
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    return next(
        (
            found
            for key, item in pairs
            if (found := _not_finite(item, f"{path}.{key}".lstrip("."))) is not None
        ),
        None,
    )


@contextmanager
def removed_on_failure(tmp: Path) -> Iterator[None]:
    """Remove the file `tmp` when the block does not end well, interrupts included."""
    try:
        yield
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


class JsonLines:
    """An append-only file of JSON objects, one per line, that a kill cannot leave with half a line.

    Opening drops an unfinished last line. Each row reaches the kernel before `write` returns (a kill -9 loses
    nothing); `sync` makes it durable against power loss. Store `offset` in a checkpoint and `truncate` to it on resume.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = (
            os.O_RDWR
            | os.O_CREAT
            | getattr(os, "O_NOFOLLOW", 0)
            | getattr(os, "O_CLOEXEC", 0)
            | getattr(os, "O_BINARY", 0)
        )
        with explained(path):
            self._fd = os.open(path, flags, 0o600)
        self._offset = 0
        self.truncate(os.fstat(self._fd).st_size)

    @property
    def offset(self) -> int:
        """Length of the file in bytes: always the end of a line."""
        return self._offset

    def write(self, row: Any) -> None:
        """Append one row. Raises NumericsError (NaN/Inf inside) or ResourceError; the file then ends where it ended before."""
        data = strict_json(row, where=str(self.path)).encode() + b"\n"
        try:
            write_all(self._fd, data)
        except OSError as error:
            self._cut(self._offset)
            raise disk_error(error, self.path, len(data)) from error
        self._offset += len(data)

    def truncate(self, offset: int) -> int:
        """Forget what was written after `offset`; returns the new length.

        An offset beyond the end keeps the file (lines lost in a power failure cannot be made up); one inside a line
        cuts that line too.
        """
        end = max(0, min(offset, os.fstat(self._fd).st_size))
        with explained(self.path):
            self._cut(self._line_start(end))
        return self._offset

    def sync(self) -> None:
        """Make all rows durable. Raises ResourceError."""
        with explained(self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut(self, offset: int) -> None:
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        self._offset = offset

    def _line_start(self, end: int, block: int = 65536) -> int:
        """The largest position <= end that is 0 or follows a line break."""
        while end > 0:
            start = max(0, end - block)
            os.lseek(self._fd, start, os.SEEK_SET)
            found = os.read(self._fd, end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0
