"""`robustcli train ... --nproc N`: N workers on this machine, their signals, restarts and one exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from robustcli.assembly.ranks import RankProcesses
from robustcli.assembly.reopen import RUN_FILE
from robustcli.errors import FAILURES, Interrupted, PeerError, RobustCliError, UsageError
from robustcli.terminal.console import Console
from robustcli.terminal.streams import DOCUMENT_FILE

#: Without the directory on sys.path, which is "" there. `-P` does the same, from Python 3.11 on.
_ELSEWHERE = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; "
    "from robustcli.cli.main import main; main()"
)
_LOST, _STOPPED = PeerError.exit_code, (130, 143)
#: Signals that the workers get: SIGINT as itself, all others as SIGTERM.
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
_HOST = "127.0.0.1"


def ranks_command() -> tuple[str, ...]:
    """What starts a rank. It finds modules where this process does; `-m` looks in the directory first."""
    with suppress(OSError):  # the directory was removed
        if os.path.realpath(os.curdir) not in map(os.path.realpath, sys.path):
            return (sys.executable, "-c", _ELSEWHERE)
    return (sys.executable, "-m", "robustcli")


COMMAND = ranks_command()


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
    with tempfile.TemporaryDirectory(prefix="robustcli-") as scratch:
        return Launch([*command, *argv], nproc, console, Path(scratch)).run(max_restarts)


@dataclass(frozen=True)
class Ending:
    """How one attempt ended: its exit code, and rank and reason of the first failure."""

    code: int
    rank: int = 0
    reason: str = ""


class Launch:
    """All attempts of one call of `launch`; signals, and the end of any launch."""

    def __init__(self, command: Sequence[str], nproc: int, console: Console, scratch: Path) -> None:
        self.command, self.nproc, self.console, self.scratch = list(command), nproc, console, scratch
        self.asked: int | None = None
        self._ranks: RankProcesses | None = None
        self._document_file = scratch / "document"  # rank 0's, with --json: others write to stdout, too

    def run(self, max_restarts: int) -> int:
        """Start attempts until one is final; report its failure and return its exit code."""
        with self._forwarding():
            for attempt in range(max_restarts + 1):
                ending = self._attempt(attempt)
                if ending.code != _LOST or self.asked is not None or attempt == max_restarts:
                    break
                again = f"restart {attempt + 1} of {max_restarts} from the last checkpoint"
                self.console.warn(f"rank {ending.rank}: {ending.reason}; {again}")
        return self.told(ending)

    def told(self, ending: Ending) -> int:
        """Tell a failure, write the one document; returns the exit code."""
        said = _document_of(self._document_file)
        if self.console.json and not ending.code and said is None:
            ending = Ending(RobustCliError.exit_code, 0, "ended without its document")
        if ending.reason:
            self.console.error(f"rank {ending.rank}: {ending.reason}")
        self._document(ending, said)
        return ending.code

    def _attempt(self, attempt: int) -> Ending:
        """Start all workers, wait for their end."""
        self._document_file.unlink(missing_ok=True)
        listener = socket.create_server((_HOST, 0))  # torch's own server would listen on every interface
        port = listener.getsockname()[1]
        listening: dict[str, Any] = {
            "is_master": True,
            "wait_for_workers": False,
            "master_listen_fd": listener.detach(),
        }
        store = dist.TCPStore(_HOST, port, **listening)  # type: ignore[attr-defined]
        ranks = self._ranks = RankProcesses(self.command, self.scratch, silent=self.console.json)
        try:
            for rank in range(self.nproc):
                ranks.start({**os.environ, **self._environment(rank, port, attempt)})
            if self.asked is not None:  # some had not begun when it came
                ranks.send(self.asked)
            failures = ranks.wait()
        finally:
            self._ranks = None
            ranks.close()
            del store  # it must outlive the workers
        return ending_of(failures, ranks.said, self.asked, hung=ranks.hung)

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
        if self.console.json and rank == 0:
            environment[DOCUMENT_FILE] = str(self._document_file)
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.nproc))
        if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # nobody else can connect, and no host name need resolve
        return environment

    # ---- signals -------------------------------------------------------------------------------------------

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Signals go to the workers while the block runs; the handlers come back afterwards."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in _FORWARDED}
        # A signal that is ignored, as under nohup, stays ignored.
        heeded = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
        for number in heeded:
            signal.signal(number, self._forward)
        try:
            yield
        finally:
            for number, handler in heeded.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        wanted = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        self.asked = self.asked or int(wanted)
        if self._ranks is not None:
            self._ranks.send(wanted)

    # ---- the end -------------------------------------------------------------------------------------------

    def _document(self, ending: Ending, said: dict[str, Any] | None) -> None:
        """With --json: write what rank 0 said when it tells the failure, or when there is none to tell.

        Else write an error document about the rank that failed.
        """
        if said is not None and (ending.rank == 0 or not ending.reason):
            self.console.document(said)
            return
        code, message = _code_of(ending.code), ending.reason or f"exit {ending.code}"
        if line := re.fullmatch(r"error\[(\S+)\]: (.*)", ending.reason):
            code, message = line.groups()
        error = {"code": code, "exit": ending.code, "message": f"rank {ending.rank}: {message}", "hint": ""}
        self.console.document({"ok": False, "error": error})


def _document_of(path: Path) -> dict[str, Any] | None:
    """The document in a file; None where there is none, or where it is cut short."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _code_of(exit_code: int) -> str:
    """The name of a failure of which only the exit code is known."""
    if exit_code in _STOPPED:
        return Interrupted("", signum=exit_code - 128).code
    kinds: list[type[RobustCliError]] = [PeerError, *RobustCliError.__subclasses__()]
    return next((kind.code for kind in kinds if kind.exit_code == exit_code), RobustCliError.code)


def ending_of(
    failures: Mapping[int, int], said: Callable[[int], str], asked: int | None, *, hung: Collection[int]
) -> Ending:
    """How the worker ended that failed first.

    failures: the exit codes of those that failed. said: what a rank wrote to stderr. hung: ranks that had to
    be killed.

    Where several failed, the most telling end is chosen: a fault of the worker itself, then an abort, which
    libraries make when a peer is lost, then a lost peer, last our own SIGTERM. Workers that were asked to
    stop and did so come before a lost peer.
    """
    if not failures:
        return Ending(0)
    stopped = 2 if asked else 4
    late = {-signal.SIGABRT: 1, **dict.fromkeys(_STOPPED, stopped), _LOST: 3, -signal.SIGTERM: 5}
    rank = min(failures, key=lambda rank: (late.get(failures[rank], 0), rank))
    code = failures[rank]
    if asked is not None and code in _STOPPED:
        return Ending(128 + asked, rank)  # rank 0 has said so
    if code in _STOPPED:
        return Ending(code, rank)
    if asked is not None and code == -asked:
        return Ending(128 + asked, rank, f"stopped by {signal.Signals(asked).name} before it began")
    if code == -signal.SIGKILL and rank in hung:
        return Ending(_LOST, rank, "did not answer, and was killed")
    if code < 0:
        return Ending(_LOST, rank, f"killed by {_signal_name(-code)}")
    reason = _last_words(said(rank)) or f"exit {code}"
    return Ending(code, rank, reason) if code in FAILURES else Ending(_LOST, rank, reason)


def _signal_name(number: int) -> str:
    """SIGKILL; the number where it has no name."""
    return signal.Signals(number).name if number in list(signal.Signals) else str(number)


def _last_words(text: str) -> str:
    """The last error line that a worker wrote, else its last line; "" where nothing is stored (rank 0)."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error[")]
    return (errors or lines or [""])[-1][:500]
