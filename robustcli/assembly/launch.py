"""`robustcli train ... --nproc N`: N workers on this machine, their signals, restarts and one exit code."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from robustcli.assembly.reopen import RUN_FILE
from robustcli.errors import PeerError, UsageError
from robustcli.terminal.console import Console
from robustcli.terminal.streams import write

COMMAND = (sys.executable, "-m", "robustcli")
_LOST, _STOPPED = PeerError.exit_code, (130, 143)
_PASSED = (*range(2, 11), 70, *_STOPPED)
#: Signals that the workers get: SIGINT as itself, all others as SIGTERM.
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
_CLOSING = 29.0  # torch waits 30 s for the others after the first failure, then kills them
_HOST = "127.0.0.1"


def launch(
    argv: Sequence[str], nproc: int, max_restarts: int, console: Console, *, command: Sequence[str] = COMMAND
) -> int:
    """Run ``COMMAND ARGV`` as ranks 0 .. nproc-1 and return one exit code for all of them.

    Args:
        argv: arguments of each worker: the verb and what follows, without --nproc and --max-restarts.
        nproc: number of workers, 1 to 1024.
        max_restarts: 0 to 1000. After a worker was lost (exit 8) all start again from the last checkpoint, at
            most this often. A stop and a fault that would come back (wrong configuration, NaN, full disk)
            start nothing again.
        console: shows `rank R: reason` of the first failure. With json it writes the one document.
        command: what a worker runs; tests pass their own.

    SIGINT is passed on to the workers. SIGTERM, SIGUSR1, SIGHUP and SIGQUIT become SIGTERM for them. The
    workers then save and end with 130 or 143.

    The exit code is that of the worker that failed first, where it is 2 to 10, 70, 130 or 143. A worker that
    was killed or ended in any other way gives 8.

    Raises UsageError: nproc or max_restarts out of range.
    """
    if not 1 <= nproc <= 1024 or not 0 <= max_restarts <= 1000:
        asked = f"--nproc {nproc} --max-restarts {max_restarts}"
        raise UsageError(f"{asked}: 1 to 1024 processes and 0 to 1000 restarts are possible")
    # torch reports a failure in five lines; the console reports it in one.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="robustcli-") as scratch:
        return _Launch([*command, *argv], nproc, console, Path(scratch)).run(max_restarts)


@dataclass(frozen=True)
class _Ending:
    """How one attempt ended: its exit code, and rank and reason of the first failure."""

    code: int
    rank: int = 0
    reason: str = ""


class _Launch:
    """All attempts of one call of `launch`."""

    def __init__(self, command: Sequence[str], nproc: int, console: Console, scratch: Path) -> None:
        self.command, self.nproc, self.console, self.scratch = list(command), nproc, console, scratch
        self.asked: int | None = None
        self._pids: list[int] = []
        self._said = ""  # rank 0's stdout, with --json

    def run(self, max_restarts: int) -> int:
        """Start attempts until one is final; report its failure and return its exit code."""
        with self._forwarding():
            for attempt in range(max_restarts + 1):
                ending = self._attempt(attempt)
                if ending.code != _LOST or self.asked is not None or attempt == max_restarts:
                    break
                again = f"restart {attempt + 1} of {max_restarts} from the last checkpoint"
                self.console.warn(f"rank {ending.rank}: {ending.reason}; {again}")
        if ending.reason:
            self.console.error(f"rank {ending.rank}: {ending.reason}")
        if self.console.json:
            self._document(ending)
        return ending.code

    def _attempt(self, attempt: int) -> _Ending:
        """Start all workers, wait for their end."""
        listener = socket.create_server((_HOST, 0))  # torch's own server would listen on every interface
        port = listener.getsockname()[1]
        listening: dict[str, Any] = {
            "is_master": True,
            "wait_for_workers": False,
            "master_listen_fd": listener.detach(),
        }
        store = dist.TCPStore(_HOST, port, **listening)  # type: ignore[attr-defined]
        redirects = dict.fromkeys(range(self.nproc), Std.ALL)
        redirects[0] = Std.OUT if self.console.json else Std.NONE
        context = start_processes(
            name="robustcli",
            entrypoint=self.command[0],
            args={rank: tuple(self.command[1:]) for rank in range(self.nproc)},
            envs={rank: self._environment(rank, port, attempt) for rank in range(self.nproc)},
            logs_specs=DefaultLogsSpecs(log_dir=str(self.scratch), redirects=redirects),
        )
        self._install()  # start_processes has installed torch's handlers, which raise
        try:
            self._pids = list(context.pids().values())
            self._send(self.asked or 0)  # 0 reaches nobody
            result, seconds = None, 0.0
            while result is None:
                began = time.monotonic()
                result = context.wait(1, 0.05)
                seconds = time.monotonic() - began
        finally:
            self._pids = []
            context.close()
            del store  # it must outlive the workers
        if self.console.json:
            self._said = _text(result.stdouts[0])
        return _ending(result.failures, result.stderrs, self.asked, hung=seconds >= _CLOSING)

    def _environment(self, rank: int, port: int, attempt: int) -> dict[str, str]:
        """The variables that torchrun sets for a worker: a worker joins both launchers in the same way."""
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self.nproc,
            "LOCAL_WORLD_SIZE": self.nproc,
            "MASTER_ADDR": _HOST,
            "MASTER_PORT": port,
        }
        names |= {
            "TORCHELASTIC_RESTART_COUNT": attempt,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RUN_ID": f"robustcli-{os.getpid()}",
        }
        environment = {name: str(value) for name, value in names.items()}
        environment[RUN_FILE] = str(self.scratch / "run")
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.nproc))
        if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # nobody else can connect, and no host name need resolve
        return environment

    # ---- signals -------------------------------------------------------------------------------------------

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Signals go to the workers while the block runs; handlers and environment come back afterwards."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in _FORWARDED}
        # A signal that is ignored, as under nohup, stays ignored.
        self._numbers = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        # Else torch's handler raises for a signal that comes before any worker is known.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
        self._install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            del os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]

    def _install(self) -> None:
        for number in self._numbers:
            signal.signal(number, self._forward)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        wanted = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        self.asked = self.asked or int(wanted)
        self._send(wanted)

    def _send(self, signum: int) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    # ---- the end -------------------------------------------------------------------------------------------

    def _document(self, ending: _Ending) -> None:
        """With --json: write the document of rank 0 when it tells the failure, or when there is none to tell.

        Else write an error document about the rank that failed.
        """
        if self._said.startswith("{") and (ending.rank == 0 or not ending.reason):
            write(sys.stdout, self._said)
            return
        code, message = PeerError.code, ending.reason
        if line := re.fullmatch(r"error\[(\S+)\]: (.*)", ending.reason):
            code, message = line.groups()
        error = {"code": code, "exit": ending.code, "message": f"rank {ending.rank}: {message}", "hint": ""}
        self.console.document({"ok": False, "error": error})


def _ending(
    failures: Mapping[int, ProcessFailure], stderrs: Mapping[int, str], asked: int | None, *, hung: bool
) -> _Ending:
    """How the worker ended that failed first.

    Where several failed, the most telling end is chosen: a fault of the worker itself, then an abort, which
    libraries make when a peer is lost, then a lost peer, last our own SIGTERM. Workers that were asked to
    stop and did so come before a lost peer.
    """
    if not failures:
        return _Ending(0)
    stopped = 2 if asked else 4
    late = {-signal.SIGABRT: 1, **dict.fromkeys(_STOPPED, stopped), _LOST: 3, -signal.SIGTERM: 5}
    rank = min(failures, key=lambda rank: (late.get(failures[rank].exitcode, 0), rank))
    code = failures[rank].exitcode
    if asked is not None and code in _STOPPED:
        return _Ending(128 + asked, rank)  # rank 0 has said so
    if code in _STOPPED:
        return _Ending(code, rank)
    if asked is not None and code == -asked:
        return _Ending(128 + asked, rank, f"stopped by {signal.Signals(asked).name} before it began to train")
    if code == -signal.SIGKILL and hung:
        return _Ending(_LOST, rank, "did not answer, and was killed")
    if code < 0:
        return _Ending(_LOST, rank, f"killed by {_signal_name(-code)}")
    reason = _last_words(_text(stderrs.get(rank))) or f"exit {code}"
    return _Ending(code, rank, reason) if code in _PASSED else _Ending(_LOST, rank, reason)


def _signal_name(number: int) -> str:
    """SIGKILL; the number where it has no name."""
    return signal.Signals(number).name if number in list(signal.Signals) else str(number)


def _last_words(text: str) -> str:
    """The last error line that a worker wrote, else its last line; "" where nothing is stored (rank 0)."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error[")]
    return (errors or lines or [""])[-1][:500]


def _text(path: Any) -> str:
    """The text of a file; "" where there is none."""
    if path and Path(path).is_file():
        return Path(path).read_text("utf-8", "replace")
    return ""
