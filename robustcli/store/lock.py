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

from robustcli.errors import LockError, ResourceError
from robustcli.store.atomic import write_all
from robustcli.store.disk import disk_error

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Exclusive lock of a directory, held from construction to `close` or to the death of the process (kill -9 included).

    The file holds ``{"pid", "host", "boot_id", "started"}`` of the last holder and stays; only the kernel's lock counts.
    Forked children (data workers) drop their copy of the lock, so that an orphan does not keep a dead run locked.

    Raises LockError E-LOCK (exit 7) naming pid and host of the holder; ResourceError when the directory is not writable
    or its file system has no locks.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        try:
            self._fd = os.open(self.path, _FLAGS, 0o600)
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            _lock(self._fd)
            if not _is(self._fd, self.path):  # taken back with its directory by a run that was refused
                raise OSError(errno.EAGAIN, "the lock is gone")
            _write_holder(self._fd)
        except OSError as error:
            os.close(self._fd)
            raise self._explain(error) from error
        _held.add(self)

    def close(self) -> None:
        """Give the directory back; twice is once."""
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


def holder(path: Path, patience: float = 0.5) -> dict[str, Any] | None:
    """What the holder wrote of itself; None when nothing readable appears within `patience` seconds.

    A holder that is just starting has not yet replaced the text of its dead predecessor: that text is returned only at the end.
    """
    deadline = time.monotonic() + patience
    while True:
        found = _read_holder(path)
        if time.monotonic() >= deadline or (found is not None and _may_live(found)):
            return found
        time.sleep(0.01)


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return None  # not written yet, or being written
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else None


def _may_live(found: dict[str, Any]) -> bool:
    if found.get("host") != socket.gethostname() or os.name != "posix":
        return True  # another machine: cannot know
    try:
        os.kill(found["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return bool(found.get("boot_id") == boot_id())


def describe(found: dict[str, Any] | None) -> str:
    """``pid 123 on host box since 2025-01-31 12:00:00``."""
    if found is None:
        return "another process"
    since = f" since {found['started']}" if found.get("started") else ""
    return f"pid {found['pid']} on host {found.get('host', '?')}{since}"


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


def _is(fd: int, path: Path) -> bool:
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
