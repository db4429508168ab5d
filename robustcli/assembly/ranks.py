"""The processes of one attempt of `launch`: started together, and ended together when one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from robustcli.errors import ResourceError

CLOSING = 30.0  # seconds that the others have to save and to end after the first failure
GRACE = 1.0  # seconds in which others that failed with it may end by themselves, and say why
_LOOK = 0.05  # seconds between two looks at the processes


class RankProcesses:
    """One process for each rank.

    Each is the head of a group of its own, so Ctrl-C at a terminal comes through the launcher alone. Rank 0
    is heard; what the others write is kept in files.

    Args:
        command: of every rank.
        scratch: directory for the files.
        silent: what rank 0 writes to stdout goes to stderr.

    Attributes:
        hung: ranks that did not end in time, and were killed.
    """

    hung: frozenset[int] = frozenset()
    _told = False  # a stop was sent: a second one would kill who is about to end

    def __init__(self, command: Sequence[str], scratch: Path, *, silent: bool) -> None:
        self._command, self._scratch, self._silent = list(command), scratch, silent
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, environment: Mapping[str, str], rank: int | None = None) -> None:
        """Start the next rank, or again the given one, which has ended.

        Raises ResourceError: the system gives no process.
        """
        again = rank is not None
        rank = len(self._processes) if rank is None else rank
        with ExitStack() as files:
            streams: dict[str, Any] = {}
            if rank:
                streams = {name: files.enter_context(self._file(rank, name)) for name in ("stdout", "stderr")}
            elif self._silent:
                streams = {"stdout": _stderr()}
            try:
                process = subprocess.Popen(
                    self._command, env=dict(environment), start_new_session=True, **streams
                )
            except OSError as error:
                reason = error.strerror or str(error)
                hint = "use fewer processes, or check the limits of this machine"
                raise ResourceError(
                    f"cannot start rank {rank}: {reason}", where="--nproc", hint=hint
                ) from error
        if again:
            self._processes[rank] = process
        else:
            self._processes.append(process)

    def _file(self, rank: int, name: str) -> Any:
        return (self._scratch / f"{rank}.{name}").open("wb")

    def said(self, rank: int) -> str:
        """What a rank wrote to stderr; "" for rank 0, which was heard."""
        path = self._scratch / f"{rank}.stderr"
        return path.read_text("utf-8", "replace") if path.is_file() else ""

    def send(self, signum: int) -> None:
        """Ask all that still run to stop, by this signal."""
        self._told = True
        for process in self._processes:
            with suppress(OSError):
                process.send_signal(signum)

    def ended(self) -> dict[int, int]:
        """The exit codes of the ranks that have ended; minus the signal for killed ones."""
        codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
        return {rank: code for rank, code in codes.items() if code is not None}

    def wait(self) -> dict[int, int]:
        """The exit codes of the ranks that failed, once all have ended; minus the signal for killed ones."""
        while not self._over():
            time.sleep(_LOOK)
        self.close()
        codes = {rank: process.returncode for rank, process in enumerate(self._processes)}
        return {rank: code for rank, code in codes.items() if code}

    def close(self) -> None:
        """End all that still run: with SIGTERM, and 30 s later with SIGKILL, data workers included."""
        if not self._told:
            self._await(GRACE)
            self.send(signal.SIGTERM)
        alive = self._await(CLOSING)
        self.hung = self.hung.union(alive)
        for rank in alive:
            with suppress(OSError):
                os.killpg(self._processes[rank].pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _await(self, seconds: float) -> list[int]:
        """The ranks that have not ended within this time."""
        deadline = time.monotonic() + seconds
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        return alive

    def _over(self) -> bool:
        """Whether all have ended, or one has failed."""
        return not self._alive() or any(process.returncode for process in self._processes)

    def _alive(self) -> list[int]:
        return [rank for rank, process in enumerate(self._processes) if process.poll() is None]


def _stderr() -> Any:
    """Our stderr for another process; nowhere, where it has no descriptor."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return subprocess.DEVNULL
