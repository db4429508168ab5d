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
from robustcli.store.atomic import overwrite, write_all, write_atomic, write_json
from robustcli.store.disk import DISK_FULL, explained
from robustcli.store.latest import LATEST, point_latest
from robustcli.store.leftovers import take_back
from robustcli.store.lock import RunLock

_REFUSED = (2, 3, 4)  # what was asked for is wrong: nobody will want to go on with it
STATES = ("running", "done", "preempted", "failed")
_LOG_FLAGS = (
    os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)


class Run:
    """One run's directory, with its lock. As a context manager it records how the block ended, if nobody else did.

    status.json = {schema_version, state, code, step, last_checkpoint, resumable}: the truth about a run, whatever a
    launcher made of the exit code. A killed run stays ``running`` with a free lock.

    Args:
        made: this run made its directory, whose name nobody chose: refused before its first result, it takes the directory back.

    `numbered`: ``latest`` beside the run is moved to it at its first checkpoint, or when it is done.
    """

    def __init__(self, path: Path, lock: RunLock, *, resumed: bool, made: bool = False) -> None:
        self.path, self.resumed, self._lock, self._made = path, resumed, lock, made
        self.numbered = False
        before = read_status(path) if resumed else {}
        kept = {key: before.get(key) for key in ("step", "last_checkpoint", "resumable")}
        self._status: dict[str, Any] = {
            "schema_version": 1,
            "state": "running",
            "code": None,
            **kept,
            "resumable": bool(kept["resumable"]),
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
        """Update the given fields of status.json, atomically; on a full disk in place, so that the last word is not lost.

        state: running | done | preempted | failed. code: exit code. step: optimiser steps done. last_checkpoint: path.
        resumable: None means: there is a last checkpoint. Raises ResourceError.
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
        path = self.path / "status.json"
        try:
            write_json(path, self._status)
        except ResourceError as error:
            if error.code != DISK_FULL or not path.is_file():
                raise
            with explained(path):
                overwrite(path, (json.dumps(self._status) + "\n").encode())  # its blocks are already ours
        if self.numbered and (last_checkpoint is not None or state == "done"):
            self.numbered = False  # once: a later run may have taken over
            self._point_latest()

    def log(self, text: str) -> None:
        """Append to log.txt with the time; control characters (terminal escapes) become visible. Raises ResourceError."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        data = "".join(f"{stamp} {printable(line)}\n" for line in text.splitlines()).encode(
            "utf-8", "backslashreplace"
        )
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
        """Write one strict JSON file of the run, atomically. Raises ResourceError; NumericsError: NaN or Inf inside."""
        write_json(self.path / name, value)
        return self.path / name

    def keep(self) -> None:
        """Leave the directory in its place, even when the run is refused: somebody will look for it by its name."""
        self._made = False

    def _point_latest(self) -> None:
        """A convenience: failing it fails no run."""
        try:
            point_latest(self.path)
        except (OSError, RobustCliError) as error:
            self.log(f"could not update {self.path.with_name(LATEST)}: {error}")

    def close(self) -> None:
        """Give the directory back; twice is once."""
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            code = exit_code_of(error) if isinstance(error, Exception) else None
            if code == 70 and error is not None:  # a bug: the user sees one line, this file the rest
                self.write_text("crash.log", "".join(traceback.format_exception(error)))
            refused = (
                code in _REFUSED and getattr(error, "code", "") != "E-WORKER"
            )  # a worker may live longer next time
            if self._status["state"] == "running" and not (self._made and refused and take_back(self.path)):
                self.status(**_ending(error))
        except RobustCliError as second:
            if error is None:
                raise
            error.__context__ = second  # the first failure is the one to report
        finally:
            self.close()


class Follower:
    """The run as another rank sees it: the same directory, without its lock; nothing is written."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path, self.resumed = path, resumed

    @property
    def checkpoints(self) -> Path:
        """See `Run.checkpoints`."""
        return self.path / "checkpoints"

    def status(self, **fields: Any) -> None:
        """Written by rank 0."""

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
        found = json.loads((path / "status.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _ending(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"state": "done", "code": 0}
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        return {"state": "failed" if code else "done", "code": code}
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return {"state": "preempted", "code": getattr(error, "exit_code", 130)}
    return {"state": "failed", "code": exit_code_of(error)}
