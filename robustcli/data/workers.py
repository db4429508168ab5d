"""The worker processes of one DataLoader: a dead or silent one becomes one DataError, and none is left behind."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from robustcli.errors import DataError

_SIGCHLD = getattr(signal, "SIGCHLD", None)


class _Died(Exception):
    """A worker ended while we waited for it."""


class Workers:
    """Iterates a DataLoader and watches its processes.

    torch answers a dead worker from a SIGCHLD handler, that is in the middle of whatever the main thread does, often a
    training step far from here. Our handler is there only while we wait for a batch; a death in between is seen at the next wait.
    """

    def __init__(self, loader: DataLoader[Any], timeout: float) -> None:
        self._timeout = timeout
        before = set(multiprocessing.active_children())
        handler = self._handler()
        self._iterator: Iterator[Any] | None = iter(loader)
        if handler is not None:
            signal.signal(_SIGCHLD, handler)  # type: ignore[arg-type]
        self.processes = [p for p in multiprocessing.active_children() if p not in before]

    @staticmethod
    def _handler() -> Any:
        """The SIGCHLD handler now; None where we may not or cannot set one."""
        if _SIGCHLD is None or threading.current_thread() is not threading.main_thread():
            return None
        return signal.getsignal(_SIGCHLD)

    def _dead(self) -> list[str]:
        return [f"pid {p.pid} exit {p.exitcode}" for p in self.processes if p.exitcode not in (None, 0)]

    def _raise_if_dead(self, *_: object) -> None:
        if self._dead():
            raise _Died

    def next(self, what: str) -> Any:
        """The next item; `what` names it (sample ids) in the error.

        Raises:
            DataError: E-WORKER, a worker died or gave nothing for `timeout` seconds; all of them are ended.
        """
        assert self._iterator is not None
        handler, started = self._handler(), time.monotonic()
        try:
            if handler is not None:
                signal.signal(_SIGCHLD, self._raise_if_dead)  # type: ignore[arg-type]
            try:
                self._raise_if_dead()
                return next(self._iterator)
            finally:
                if handler is not None:
                    signal.signal(_SIGCHLD, handler)  # type: ignore[arg-type]
        except (_Died, RuntimeError, OSError, EOFError) as error:
            raise self._lost(what, error, time.monotonic() - started) from error

    def _lost(self, what: str, error: Exception, waited: float) -> DataError:
        """Classified by the processes' exit codes, not by the text: a dead one, a silent one, or another failure."""
        deadline = time.monotonic() + 1
        while self.processes and not self._dead() and time.monotonic() < deadline and waited < self._timeout:
            time.sleep(0.02)  # a broken pipe may be seen before the death that broke it
        dead = self._dead()
        self.kill()
        if dead:
            return DataError(
                f"a data worker died ({', '.join(dead)})", where=what, hint="check RAM and /dev/shm, or use fewer data.workers", code="E-WORKER"
            )
        fault = f"data workers gave nothing for {self._timeout:g} s" if waited >= self._timeout else f"a data worker failed: {error}"
        return DataError(fault, where=what, hint="check the disk, raise data.timeout, or use data.workers=0", code="E-WORKER")

    def kill(self) -> None:
        """End the workers at once, stopped ones too."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join(5)

    def close(self) -> None:
        """Let the workers finish; torch joins them when the iterator goes."""
        self._iterator = None
