"""Files that are either the old or the new content, never half of one, whatever kills the process."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from robustcli.errors import GoneError, NumericsError
from robustcli.regular import open_regular
from robustcli.store.disk import disk_error, explained

TMP_PREFIX = ".tmp-"  # everything that a killed process may leave behind starts like this
_BLOCK = 65536  # bytes that `JsonLines` reads at once on its way back to a line break
TMP_NAME = re.compile(r"\.tmp-(?:[a-z0-9-]+-)?\d+-[0-9a-f]{8}", re.ASCII)
FILE_MODE = 0o666  # before the user's umask
#: For os.open: follow no link, close in children, translate no line breaks; each where the system has it.
PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def tmp_name(label: str = "") -> str:
    """A fresh name for a temporary file or directory of this process."""
    return f"{TMP_PREFIX}{label}{os.getpid()}-{secrets.token_hex(4)}"


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`: after a short write it writes the rest. Raises OSError."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def write_new(path: Path, data: bytes, passed: Callable[[str], None] = lambda point: None) -> None:
    """Create `path` (must not exist, no link followed), write, fsync. Raises OSError.

    passed: is called with ``after-write`` and ``after-fsync``, the fail points of the tests.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, FILE_MODE)
    try:
        write_all(fd, data)
        passed("after-write")
        os.fsync(fd)
    finally:
        os.close(fd)
    passed("after-fsync")


def fsync_dir(path: Path) -> None:
    """Make the entries of a directory durable. Does nothing on Windows, which cannot open a directory."""
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, all or nothing.

    Order: temporary file in the same directory, fsync, rename, fsync of the directory.
    Raises ResourceError: E-DISK when there is no room, E-WRITE for anything else; the old content then stays.
    """
    tmp = path.with_name(tmp_name())
    with explained(path, len(data)), removed_on_failure(tmp):
        write_new(tmp, data)
        os.replace(tmp, path)
        fsync_dir(path.parent)


def overwrite(path: Path, data: bytes) -> None:
    """Replace the content of an existing file in place: not atomic, but needs no new space.

    Raises OSError, also for a link.
    """
    fd = os.open(path, os.O_WRONLY | PLAIN)
    try:
        write_all(fd, data)
        os.ftruncate(fd, len(data))
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raises as `write_atomic` and as `strict_json`."""
    write_atomic(path, strict_json(value, indent=1, where=str(path)).encode() + b"\n")


def strict_json(value: Any, *, indent: int | None = None, where: str = "") -> str:
    """JSON with sorted keys and without NaN or Inf, which readers take in different ways.

    Raises NumericsError E-NAN naming the key.
    """
    try:
        return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
    except ValueError as error:
        key = _first_not_finite(value, "")
        if key is None:
            raise
        raise NumericsError(
            f"{key} is not a finite number", where=where, hint="nothing was written"
        ) from error


def _first_not_finite(value: Any, path: str) -> str | None:
    """The dotted path of the first NaN or Inf inside `value`; None when there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return path or "the value"
    for key, item in _children(value):
        inner = _first_not_finite(item, f"{path}.{key}".lstrip("."))
        if inner is not None:
            return inner
    return None


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    """(key or position, item) of a mapping, list or tuple; nothing for any other value."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    return ()


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

    Opening drops an unfinished last line. Each row reaches the kernel before `write` returns, so that a kill
    -9 loses nothing; `sync` makes it durable against power loss. Store `offset` in a checkpoint, and
    `truncate` to it on resume.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path):
            self._fd = open_regular(path, os.O_RDWR | os.O_CREAT | PLAIN, FILE_MODE)
        self._offset = 0
        self.truncate(os.fstat(self._fd).st_size)

    @property
    def offset(self) -> int:
        """Length of the file in bytes: always the end of a line."""
        return self._offset

    def write(self, row: Any) -> None:
        """Append one row.

        Raises NumericsError (NaN or Inf inside) or ResourceError (as `check`, too); the file then ends where
        it ended before.
        """
        data = strict_json(row, where=str(self.path)).encode() + b"\n"
        self.check()
        try:
            write_all(self._fd, data)
        except OSError as error:
            self._cut(self._offset)
            raise disk_error(error, self.path, len(data)) from error
        self._offset += len(data)

    def check(self) -> None:
        """Raises GoneError when somebody has removed the file or put another in its place.

        Where it is gone, its rows are first written back.
        """
        try:
            if os.path.samestat(os.fstat(self._fd), os.stat(self.path, follow_symlinks=False)):
                return
            saved = "another file is in its place"
        except FileNotFoundError:
            self._write_back()
            saved = "its rows were written back"
        raise GoneError(
            f"{self.path.name} was removed while the run lives; {saved}",
            where=str(self.path),
            hint="nothing else may work in the directory of a live run",
        )

    def _write_back(self) -> None:
        """Make the file again with all rows, which its descriptor still holds. Raises ResourceError."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        with os.fdopen(self._fd, "rb") as file:
            rows = file.read(self._offset)
        self._fd = -1
        write_atomic(self.path, rows)
        with explained(self.path):
            self._fd = open_regular(self.path, os.O_RDWR | PLAIN)
            os.lseek(self._fd, 0, os.SEEK_END)

    def truncate(self, offset: int) -> int:
        """Remove what was written after `offset`; returns the new length.

        An offset inside a line removes that line too. An offset beyond the end changes nothing: the lines
        that a power failure took cannot be made up.
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
        """Close the file; a second call does nothing."""
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

    def _line_start(self, end: int) -> int:
        """The largest position <= end that is 0 or follows a line break."""
        while end > 0:
            start = max(0, end - _BLOCK)
            os.lseek(self._fd, start, os.SEEK_SET)
            line_break = os.read(self._fd, end - start).rfind(b"\n")
            if line_break >= 0:
                return start + line_break + 1
            end = start
        return 0
