"""`--nproc N` of the verbs that measure: N processes that share the samples, and outlive each other.

Each runs the same command. They are a team (`runtime.team`) and need no connection. One that is lost takes
nothing with it: the others measure what it had not finished.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from robustcli.assembly.launch import COMMAND, Ending, Launch, ending_of
from robustcli.assembly.ranks import RankProcesses
from robustcli.assembly.reopen import RUN_FILE
from robustcli.errors import FAILURES, PeerError, UsageError
from robustcli.runtime.device import cuda_count, threads_each
from robustcli.runtime.team import LAUNCHER, TEAM, UNMET
from robustcli.terminal.console import Console
from robustcli.terminal.streams import DOCUMENT_FILE

_MOST = 256  # processes
_AGAIN = 3  # times that rank 0, which writes the run, is started again when it was killed
_LOOK = 0.05  # seconds between two looks at the processes
_RESUMED = ("eval", "certify")  # verbs that keep in the run what they measure
_STAYS = "what is measured stays, --resume goes on"
_GONE = f"it was started {_AGAIN + 1} times, and the run has no result: start the command again"
_UNMET = 1  # exit code of rank 0: a gate is not met


def check_processes(nproc: int, device: str) -> None:
    """Raises UsageError for a number of processes that this machine or this device cannot have."""
    if not 1 <= nproc <= _MOST:
        raise UsageError(f"--nproc {nproc}: 1 to {_MOST} processes are possible")
    gpus = cuda_count()
    if nproc == 1 or device == "cpu" or (device == "auto" and not gpus):
        return
    if device not in ("auto", "cuda"):
        hint = "leave --device out: there is one process per GPU"
        raise UsageError(f"--nproc {nproc}: the processes cannot share {device}", hint=hint)
    if nproc > gpus:
        hint = f"--nproc {max(1, gpus)}, or --device cpu"
        raise UsageError(f"--nproc {nproc}: one process per GPU, and GPUs here: {gpus}", hint=hint)


def measure_together(
    argv: Sequence[str], nproc: int, device: str, console: Console, *, command: Sequence[str] = COMMAND
) -> int:
    """Run ``COMMAND ARGV`` as ranks 0 .. nproc-1 of one team; returns one exit code for all of them.

    Args:
        argv: arguments of each rank: the verb and what follows, without --nproc.
        nproc: number of ranks.
        device: as configured. Each rank sees one GPU of its own, unless it is ``cpu``.
        console: told of ranks that are lost, and of the failure. With json it writes the one document.
        command: what a rank runs; tests pass their own.

    Signals are passed on as by `launch.launch`. A rank that was killed, or ended with a code that is not
    ours, is lost: the others go on, and rank 0 is started again. A failure that is explained (exit 2 to 7, 9,
    10, 70) ends all. The exit code is that of rank 0, or of the rank that failed; 8 where all were lost.

    Raises UsageError as `check_processes`.
    """
    check_processes(nproc, device)
    with tempfile.TemporaryDirectory(prefix="robustcli-") as scratch:
        ranks = [*command, *argv]
        return _Together("".join(argv[:1]), ranks, nproc, device, console, Path(scratch)).measure()


class _Together(Launch):
    """One launch of a team."""

    def __init__(
        self, verb: str, command: Sequence[str], nproc: int, device: str, console: Console, scratch: Path
    ) -> None:
        super().__init__(command, nproc, console, scratch)
        self._device = device
        self._left = _STAYS if verb in _RESUMED else _GONE
        self._lost: dict[int, str] = {}  # rank -> how it was lost
        self._again = 0

    def measure(self) -> int:
        """Start all ranks and wait for their end; report a failure and return the exit code."""
        began = time.time()
        ranks = self._ranks = RankProcesses(self.command, self.scratch, silent=self.console.json)
        with self._forwarding():
            try:
                for rank in range(self.nproc):
                    ranks.start(self._of(rank))
                if self.asked is not None:  # some had not begun when it came
                    ranks.send(self.asked)
                ending = self._watched(ranks)
            finally:
                self._ranks = None
                ranks.close()
        if not ending.code:
            self._say_of_loading(time.time() - began)
        return self.told(ending)

    def _say_of_loading(self, total: float) -> None:
        """Where most of the time went into loading, which more processes do not shorten, say so."""
        with suppress(OSError):
            loaded = (self.scratch / "loaded-0").stat().st_mtime
            if (loading := total - (time.time() - loaded)) > total / 2:
                took = f"loading took {loading:.0f} of {total:.0f} s"
                self.console.info(f"{took}, in each process; --nproc shortens the rest alone")

    def _watched(self, ranks: RankProcesses) -> Ending:
        """Wait until rank 0 is done, or all must end."""
        while True:
            ended = {rank: code for rank, code in ranks.ended().items() if rank not in self._lost}
            if 0 in ended and self._spoke(ended[0]):
                return Ending(ended[0])
            failed = {rank: code for rank, code in ended.items() if code}
            if failed and self.asked is not None:
                return self._failure(ranks)
            for rank, code in failed.items():
                if not _is_lost(rank, code):
                    return self._failure(ranks)
                if (final := self._lose(ranks, rank, code)) is not None:
                    return final
            time.sleep(_LOOK)

    def _spoke(self, code: int) -> bool:
        """Whether rank 0 ended with a result. A Python that cannot start ends with 1, too."""
        return not code or (code == _UNMET and (self.scratch / f"{UNMET}-0").exists())

    def _failure(self, ranks: RankProcesses) -> Ending:
        """The ending once all have ended after the first failure; what rank 0 says of itself was heard."""
        failures = {rank: code for rank, code in ranks.wait().items() if rank not in self._lost}
        ending = ending_of(failures, ranks.said, self.asked, hung=ranks.hung)
        if ending.rank == 0 and failures.get(0) in FAILURES:
            return Ending(ending.code)
        return ending

    def _lose(self, ranks: RankProcesses, rank: int, code: int) -> Ending | None:
        """A rank was lost: rank 0 is started again, others are done without. The ending, where that fails."""
        reason = ending_of({rank: code}, ranks.said, None, hung=()).reason
        with suppress(OSError):
            (self.scratch / f"inside-{rank}").unlink()
        if rank:
            self._lost[rank] = reason
            self.console.warn(f"rank {rank}: {reason}; the others measure its samples")
            return None
        if self._again == _AGAIN:
            return Ending(PeerError.exit_code, 0, f"{reason}; {self._left}")
        self._again += 1
        self.console.warn(f"rank 0: {reason}; it is started again, and what is measured stays")
        ranks.start(self._of(0), rank=0)
        return None

    def _of(self, rank: int) -> dict[str, str]:
        """The environment of a rank."""
        own = {
            TEAM: f"{rank}/{self.nproc}:{self.scratch}",
            LAUNCHER: str(os.getpid()),
            RUN_FILE: str(self.scratch / "run"),
            "TORCHELASTIC_RESTART_COUNT": str(0 if rank else self._again),
            "OMP_NUM_THREADS": str(threads_each(self.nproc)),
            **_gpu(rank, self._device, os.environ),
        }
        if self.console.json and not rank:
            own[DOCUMENT_FILE] = str(self._document_file)
        return {**os.environ, **own}


def _gpu(rank: int, device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable by which a rank sees one GPU alone, as cuda:0."""
    if device == "cpu" or not cuda_count():
        return {}
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[rank] if visible else str(rank)}


def _is_lost(rank: int, code: int) -> bool:
    """Whether a rank ended without telling why. One that was asked to stop, and it alone, is lost as well."""
    stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    return code not in FAILURES or code == PeerError.exit_code or (stopped and rank > 0)
