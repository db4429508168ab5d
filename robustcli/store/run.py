"""One run's directory while the run lives: status, log, files."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from robustcli.errors import Interrupted, ResourceError, RobustCliError, exit_code_of, printable
from robustcli.foreign import ended_by_user_code, foreign_fault
from robustcli.store.atomic import overwrite, write_all, write_atomic, write_json
from robustcli.store.disk import DISK_FULL, explained
from robustcli.store.latest import LATEST, point_latest
from robustcli.store.leftovers import remove_without_result
from robustcli.store.lock import RunLock

_REFUSED = (2, 3, 4)  # exit codes: what was asked for is wrong, so nobody will want to go on with the run
STATES = ("running", "done", "preempted", "failed")
_LOG_FLAGS = (
    os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)


class Run:
    """One run's directory, with its lock. As a context manager it records how the block ended.

    status.json = {schema_version, state, code, step, last_checkpoint, resumable} tells how a run ended; the
    exit code that a launcher reports may differ. A state recorded before the end of the block stays. A killed
    run stays ``running``, and its lock is free.

    Args:
        path: the directory.
        lock: held by this process; the run closes it.
        resumed: the directory holds an earlier part of this run.
        made: the directory was made for this run under a number, not under a name that the user chose. It is
            removed when the run is refused before its first result.

    Attributes:
        numbered: ``latest`` beside the run is moved to it at its first checkpoint, or when it is done.
    """

    def __init__(self, path: Path, lock: RunLock, *, resumed: bool, made: bool = False) -> None:
        self.path, self.resumed, self._lock, self._made = path, resumed, lock, made
        self.numbered = False
        before = read_status(path) if resumed else {}
        self._status: dict[str, Any] = {
            "schema_version": 1,
            "state": "running",
            "code": None,
            "step": before.get("step"),
            "last_checkpoint": before.get("last_checkpoint"),
            "resumable": bool(before.get("resumable")),
        }

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of this run go; made by the first save."""
        return self.path / "checkpoints"

    def status(
        self,
        *,
        state: str | None = None,
        code: int | None = None,
        step: int | None = None,
        last_checkpoint: str | None = None,
        resumable: bool | None = None,
    ) -> None:
        """Update the given fields of status.json, atomically; on a full disk in place.

        Args:
            state: running | done | preempted | failed.
            code: exit code.
            step: optimiser steps done.
            last_checkpoint: its path.
            resumable: None leaves it, or makes it True when `last_checkpoint` is given.

        Raises ResourceError.
        """
        if state is not None and state not in STATES:
            raise ValueError(f"state {state!r} is not one of {', '.join(STATES)}")
        given = {
            "state": state,
            "code": code,
            "step": step,
            "last_checkpoint": last_checkpoint,
            "resumable": resumable,
        }
        self._status.update({key: value for key, value in given.items() if value is not None})
        if resumable is None and last_checkpoint is not None:
            self._status["resumable"] = True
        self._write_status()
        if self.numbered and (last_checkpoint is not None or state == "done"):
            self.numbered = False  # once: a later run may have taken over
            self._point_latest()

    def _write_status(self) -> None:
        path = self.path / "status.json"
        try:
            write_json(path, self._status)
        except ResourceError as error:
            if error.code != DISK_FULL or not path.is_file():
                raise
            with explained(path):
                overwrite(path, (json.dumps(self._status) + "\n").encode())  # its blocks are already ours

    def log(self, text: str) -> None:
        """Append to log.txt with the time; control characters (terminal escapes) become visible.

        Raises ResourceError.
        """
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{stamp} {printable(line)}\n" for line in text.splitlines())
        data = lines.encode("utf-8", "backslashreplace")
        path = self.path / "log.txt"
        with explained(path, len(data)):
            fd = os.open(path, _LOG_FLAGS, 0o600)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)

    def write_text(self, name: str, text: str) -> Path:
        """Write one file of the run, atomically. Raises ResourceError."""
        write_atomic(self.path / name, text.encode("utf-8", "backslashreplace"))
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON file of the run, atomically. Raises ResourceError, NumericsError for NaN or Inf."""
        write_json(self.path / name, value)
        return self.path / name

    def keep(self) -> None:
        """Keep the directory even when the run is refused: somebody will look for it by its name."""
        self._made = False

    def _point_latest(self) -> None:
        """Move ``latest`` to this run. It is a convenience: a failure is logged and fails no run."""
        try:
            point_latest(self.path)
        except (OSError, RobustCliError) as error:
            self.log(f"could not update {self.path.with_name(LATEST)}: {error}")

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if _needs_traceback(error):
                # A bug, ours or the user's: the user sees one line, this file has the rest.
                assert error is not None
                self.write_text("crash.log", "".join(traceback.format_exception(error)))
            if self._status["state"] == "running" and not self._removed_after(error):
                self.status(**_ending(error))
        except RobustCliError as second:
            if error is None:
                raise
            error.__context__ = second  # the first failure is the one to report
        finally:
            self.close()

    def _removed_after(self, error: BaseException | None) -> bool:
        """Whether the directory was removed: this run made it, and was refused before its first result."""
        return self._made and _is_refusal(error) and remove_without_result(self.path)


class Follower:
    """The run as another rank sees it: the same directory without its lock, where rank 0 alone writes."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path, self.resumed = path, resumed

    @property
    def checkpoints(self) -> Path:
        """See `Run.checkpoints`."""
        return self.path / "checkpoints"

    def status(self, **fields: Any) -> None:
        """Does nothing: rank 0 writes the status."""

    def write_text(self, name: str, text: str) -> Path:
        """The path at which rank 0 writes."""
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """The path at which rank 0 writes."""
        return self.path / name

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *ending: object) -> None:
        return None


def read_status(path: Path) -> dict[str, Any]:
    """status.json of a run directory; empty when there is none or it is not readable as a mapping."""
    try:
        status = json.loads((path / "status.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(status, dict):
        return {}
    return status


def _needs_traceback(error: BaseException | None) -> bool:
    """Whether one line does not tell enough: a bug, or a failure of the user's code."""
    return ended_by_user_code(error) or (isinstance(error, Exception) and exit_code_of(error) == 70)


def _is_refusal(error: BaseException | None) -> bool:
    """Whether what was asked for is wrong. A data worker that died (E-WORKER) may live longer next time.

    The traceback of a user's code stays where the user finds it.
    """
    if not isinstance(error, Exception) or ended_by_user_code(error):
        return False
    return exit_code_of(error) in _REFUSED and getattr(error, "code", "") != "E-WORKER"


def _ending(error: BaseException | None) -> dict[str, Any]:
    """The fields of status.json for a block that ended with `error`."""
    if error is None:
        return {"state": "done", "code": 0}
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return {"state": "preempted", "code": getattr(error, "exit_code", 130)}
    return {"state": "failed", "code": exit_code_of(foreign_fault(error) or error)}
