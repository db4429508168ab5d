"""One run's directory while the run lives: status, log, files."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from robustcli.errors import GoneError, ResourceError, RobustCliError, exit_code_of, printable
from robustcli.foreign import ended_by_user_code
from robustcli.regular import open_regular
from robustcli.store.atomic import FILE_MODE, PLAIN, TMP_NAME, overwrite, write_all, write_atomic, write_json
from robustcli.store.disk import DISK_FULL, explained
from robustcli.store.ending import fields_of, is_refusal
from robustcli.store.identity import Identity, identity_of
from robustcli.store.inventory import came_to_nothing
from robustcli.store.latest import LATEST, point_latest
from robustcli.store.leftovers import remove_without_result
from robustcli.store.lock import RunLock
from robustcli.store.replacing import drop, move_aside, put_back
from robustcli.store.retention import remove
from robustcli.store.status import NAME as STATUS
from robustcli.store.status import STATES, first_status, read_status

_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | PLAIN


class Run:
    """One run's directory, with its lock. As a context manager it records how the block ended.

    A run that resumes or replaces an earlier one touches nothing of it before `begin`. The earlier run that
    it replaces then waits aside (`store.replacing`), until the new one has something to show: a checkpoint, a
    record, or its end. A new run that fails before puts it back.

    status.json = {schema_version, state, code, step, last_checkpoint, resumable} tells how a run ended; the
    exit code that a launcher reports may differ. A state recorded before the end of the block stays. A killed
    run stays ``running``, and its lock is free.

    Args:
        path: the directory.
        lock: held by this process; the run closes it.
        verb: whose run this is.
        resumed: the directory holds an earlier part of this run.
        replaces: the earlier run there that this one replaces; None where there is none.
        made: the directory was made for this run under a number, not under a name that the user chose. It is
            removed when the run is refused before its first result.

    Attributes:
        numbered: ``latest`` beside the run is moved to it at its first checkpoint, or when it is done.
        begun: whether `begin` was called.
    """

    def __init__(
        self,
        path: Path,
        lock: RunLock,
        *,
        verb: str,
        resumed: bool,
        replaces: Identity | None = None,
        made: bool = False,
    ) -> None:
        self.path, self.verb, self.resumed, self._lock, self._made = path, verb, resumed, lock, made
        self.numbered = self.begun = False
        self._replaces, self._aside = replaces, False
        self._status = first_status(read_status(path) if resumed else {})
        self._unwritten: list[bytes] = []  # lines of the log from before `begin`

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of this run go; made by the first save."""
        return self.path / "checkpoints"

    @property
    def takes_over(self) -> bool:
        """Whether the directory holds an earlier run, or an earlier part of this one."""
        return self.resumed or self._replaces is not None

    def begin(self) -> None:
        """Take the directory: move an earlier run aside, and write identity and status.

        A second call does nothing. Raises LockError where a run inside is alive, and ResourceError.
        """
        if self.begun:
            return
        with explained(self.path):
            for entry in list(self.path.iterdir()):
                if TMP_NAME.fullmatch(entry.name):
                    remove(entry)
            if self._replaces is not None:
                move_aside(self.path, self._replaces.verb)
                self._aside = True
        self.begun = True
        known = identity_of(self.path) if self.resumed else None
        if known is None or not known.id:
            Identity.new(self.verb).write(self.path)
        self._write_status()
        for data in self._unwritten:
            self._append(data)

    def check(self) -> None:
        """Raises GoneError when the directory was removed or replaced while the run lives."""
        if not self._lock.held:
            raise GoneError(
                "the run directory was removed while the run lives",
                where=str(self.path),
                hint="what it held is gone with it; start again",
            )

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

        Before `begin` they are kept in mind.

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
        if not self.begun:
            return
        self._write_status()
        if last_checkpoint is not None or state == "done":
            self._has_something_to_show()

    def _has_something_to_show(self) -> None:
        """The earlier run is not needed any more, and ``latest`` may name this one."""
        self._drop_aside()
        if self.numbered:
            self.numbered = False  # once: a later run may have taken over
            self._point_latest()

    def _drop_aside(self) -> None:
        """Remove the earlier run. A failure fails no run: the next start removes the rest."""
        if not self._aside:
            return
        self._aside = False
        try:
            drop(self.path)
        except OSError as error:
            self.log(f"could not remove all of the earlier run: {error}")

    def _write_status(self) -> None:
        self.check()
        path = self.path / STATUS
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
        if self.begun:
            self._append(data)
        else:
            self._unwritten.append(data)

    def _append(self, data: bytes) -> None:
        """Append to log.txt, which must be a regular file: writing to a FIFO would wait for a reader."""
        self.check()
        path = self.path / "log.txt"
        with explained(path, len(data)):
            fd = open_regular(path, _LOG_FLAGS, FILE_MODE)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)

    def write_text(self, name: str, text: str) -> Path:
        """Write one file of the run, atomically. Raises ResourceError."""
        self.check()
        write_atomic(self.path / name, text.encode("utf-8", "backslashreplace"))
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON file of the run, atomically. Raises ResourceError, NumericsError for NaN or Inf."""
        self.check()
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
            self._end(error)
        except RobustCliError as second:
            if error is None:
                raise
            error.__context__ = second  # the first failure is the one to report
        finally:
            self.close()

    def _end(self, error: BaseException | None) -> None:
        """Write how the run ended, unless it leaves the directory as it was."""
        left = self._leaves_the_earlier_run(error)
        if not left:
            self.begin()
        if error is not None and _needs_traceback(error):
            # A bug, ours or the user's: the user sees one line, this file has the rest.
            self.write_text("crash.log", "".join(traceback.format_exception(error)))
        if not left and self._status["state"] == "running" and not self._removed_after(error):
            self.status(**fields_of(error))

    def _leaves_the_earlier_run(self, error: BaseException | None) -> bool:
        """Whether an earlier run is in the directory as it was before, untouched or put back.

        One that should go on is told of every end but a refusal.
        """
        if not self.begun:
            return self._replaces is not None or (self.resumed and is_refusal(error))
        if not self._aside:
            return False
        with explained(self.path):
            if error is not None and came_to_nothing(self.path, self.verb):
                self._aside = False
                put_back(self.path, self.verb)
                return True
        self._drop_aside()
        return False

    def _removed_after(self, error: BaseException | None) -> bool:
        """Whether the directory was removed: this run made it, and was refused before its first result."""
        return self._made and is_refusal(error) and remove_without_result(self.path, self.verb)


def _needs_traceback(error: BaseException) -> bool:
    """Whether one line does not tell enough: a bug, or a failure of the user's code."""
    return ended_by_user_code(error) or (isinstance(error, Exception) and exit_code_of(error) == 70)
