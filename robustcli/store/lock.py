"""One process per run directory: a kernel lock on ``<run>/.lock`` that dies with its holder."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from robustcli.errors import CheckpointError, LockError, ResourceError
from robustcli.regular import check_regular, read_regular
from robustcli.store.atomic import FILE_MODE, PLAIN, write_all
from robustcli.store.disk import disk_error

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
_LIMIT = 4096  # bytes
_PATIENCE = 0.5  # seconds in which a holder that is just starting writes its name
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Exclusive lock of a directory, held from construction to `close` or to the death of the process.

    The file holds ``{"pid", "host", "boot_id", "started"}`` of the last holder. It stays after the lock is
    gone: only the kernel's lock counts. Forked children (data workers) drop their copy of the lock, so that
    an orphan does not keep a dead run locked.

    Raises LockError E-LOCK (exit 7) naming pid and host of the holder; ResourceError when the directory is
    not writable or its file system has no locks.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | PLAIN, FILE_MODE)
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            check_regular(self._fd)
            _lock(self._fd)
            if not _still_names(self.path, self._fd):  # a run that was refused removed its directory
                raise OSError(errno.EAGAIN, "the lock is gone")
            _write_holder(self._fd)
        except OSError as error:
            os.close(self._fd)
            raise self._explain(error) from error
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process still owns the directory: nobody has removed or replaced it meanwhile."""
        return self._fd >= 0 and _still_names(self.path, self._fd)

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _held.discard(self)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _explain(self, error: OSError) -> LockError | ResourceError:
        if error.errno in _BUSY:
            who = describe(holder(self.path))
            return LockError(
                f"run directory is in use by {who}",
                where=str(self.path.parent),
                hint="wait for it, or choose another --out",
            )
        if error.errno in {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}:
            return ResourceError(
                "this file system has no locks",
                where=str(self.path),
                hint="choose a local directory with --out",
                code="E-LOCK-FS",
            )
        return disk_error(error, self.path)


def holder(path: Path) -> dict[str, Any] | None:
    """What the holder wrote of itself; None when nothing readable appears for a while.

    A holder that is just starting has not yet replaced the text of its dead predecessor. The text of a dead
    process is therefore returned only when the patience is over.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        record = _read_holder(path)
        if time.monotonic() >= deadline or (record is not None and _may_live(record)):
            return record
        time.sleep(0.01)


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(read_regular(path, _LIMIT))
    except (CheckpointError, ValueError, RecursionError):
        return None  # not written yet, or being written
    if isinstance(record, dict) and isinstance(record.get("pid"), int):
        return record
    return None


def may_be_held(directory: Path) -> bool:
    """Whether the last holder of a directory may still live; nothing is locked to find out.

    A holder on another machine may always.
    """
    record = _read_holder(directory / NAME)
    return record is not None and _may_live(record)


def is_holder(path: Path) -> bool:
    """Whether a file is the lock of a run: a record of its holder, or empty before that is written."""
    try:
        if not read_regular(path, _LIMIT):
            return True
    except CheckpointError:
        return False
    record = _read_holder(path)
    return record is not None and {"pid", "host", "boot_id", "started"} <= record.keys()


def _may_live(record: dict[str, Any]) -> bool:
    if record.get("host") != socket.gethostname() or os.name != "posix":
        return True  # another machine: cannot know
    try:
        os.kill(record["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return bool(record.get("boot_id") == boot_id())


def describe(record: dict[str, Any] | None) -> str:
    """``pid 123 on host box since 2025-01-31 12:00:00``."""
    if record is None:
        return "another process"
    who = f"pid {record['pid']} on host {record.get('host', '?')}"
    if record.get("started"):
        who += f" since {record['started']}"
    return who


def boot_id() -> str:
    """Identifies this boot of this machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _write_holder(fd: int) -> None:
    me = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    write_all(fd, json.dumps(me).encode() + b"\n")


def _lock(fd: int) -> None:
    """Raises OSError: one of `_BUSY` when another process holds it."""
    if sys.platform == "win32":
        os.lseek(fd, 1 << 20, os.SEEK_SET)  # beyond the text, which others must be able to read
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _still_names(path: Path, fd: int) -> bool:
    """Whether `path` still names the open file `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _drop_in_child() -> None:
    for lock in list(_held):
        lock.close()  # closes the child's copy only: the lock stays with the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)
