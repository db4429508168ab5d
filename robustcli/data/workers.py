"""The worker processes of a DataLoader: a dead or silent one becomes a DataError, and none is left behind."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from robustcli.errors import DataError

_POLL = 0.1  # seconds between two looks at the processes while nothing comes


class Workers:
    """Iterates a DataLoader that has workers, in a thread of its own, and watches its processes.

    Two faults of a plain loop are avoided. First, torch answers a dead worker from a SIGCHLD handler, that is
    in the middle of whatever the main thread does, often a training step far from here. From another thread
    torch installs no such handler. Second, a worker killed in the middle of a message leaves its reader
    waiting for ever. Here only our thread waits.

    Args:
        loader: num_workers >= 1, timeout 0 (ours holds).
        timeout: seconds to wait for one item, > 0.
    """

    def __init__(self, loader: DataLoader[Any], timeout: float) -> None:
        self._timeout = timeout
        self._items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
        self._stop, started = threading.Event(), threading.Event()
        self.processes: list[BaseProcess] = []
        self._thread = threading.Thread(
            target=self._hand_on, args=(loader, started), name="robustcli-data", daemon=True
        )
        self._thread.start()
        started.wait()  # nothing else runs here while the workers are forked

    def _hand_on(self, loader: DataLoader[Any], started: threading.Event) -> None:
        """Put each item of the loader, or its exception, where `next` takes it from."""
        iterator = None
        try:
            before = set(multiprocessing.active_children())
            iterator = iter(loader)
            self.processes = [p for p in multiprocessing.active_children() if p not in before]
            started.set()
            for item in iterator:
                if not self._put(item, None):
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            self._put(None, error)
            # Forked workers end with the thread that forked them, and would look like the fault.
            self._stop.wait()
        finally:
            started.set()
            del iterator  # torch joins the workers

    def _put(self, item: Any, error: BaseException | None) -> bool:
        """Wait for room in the queue, and put the item there. False when the consumer has gone."""
        while not self._stop.is_set():
            try:
                self._items.put((item, error), timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def next(self, what: str) -> Any:
        """The next item; `what` names it (sample ids) in the error.

        Raises:
            DataError: E-WORKER, a worker died or gave nothing for `timeout` seconds; all of them are ended.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                item, error = self._items.get(timeout=_POLL)
            except queue.Empty:
                if self._dead():
                    raise self._lost(what, None) from None
                if time.monotonic() >= deadline:
                    raise self._silent(what) from None
                continue
            if error is not None:
                raise self._lost(what, error) from error
            return item

    def _silent(self, what: str) -> DataError:
        """End the workers; the error that says they gave nothing."""
        self.kill()
        fault = f"data workers gave nothing for {self._timeout:g} s"
        hint = "check the disk, raise data.timeout, or use data.workers=0"
        return DataError(fault, where=what, hint=hint, code="E-WORKER")

    def _dead(self) -> list[str]:
        """The processes that ended otherwise than they should."""
        return [f"pid {p.pid} exit {p.exitcode}" for p in self.processes if p.exitcode not in (None, 0)]

    def _lost(self, what: str, error: BaseException | None) -> BaseException:
        """End the workers; the error that says why an item is missing.

        The exit codes of the processes decide which one, not the text of `error`.
        """
        deadline = time.monotonic() + 1
        while not (dead := self._dead()) and time.monotonic() < deadline:
            time.sleep(0.02)  # a broken pipe may be seen before the death that broke it
        self.kill()
        if dead or error is None:
            fault = f"a data worker died ({', '.join(dead)})"
            hint = "check RAM and /dev/shm, or use fewer data.workers"
            return DataError(fault, where=what, hint=hint, code="E-WORKER")
        if isinstance(error, (OSError, EOFError)):  # no process, no semaphore, no pipe
            hint = "check RAM and /dev/shm, or use data.workers=0"
            return DataError(f"data workers failed: {error}", where=what, hint=hint, code="E-WORKER")
        return error

    def kill(self) -> None:
        """End the workers at once, stopped ones too."""
        self._stop.set()
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join(5)

    def close(self) -> None:
        """Let the workers finish what they do and end."""
        if self._stop.is_set():
            return  # killed: the thread may wait for the rest of a message that never comes
        self._stop.set()
        self._thread.join(10)
        if self._thread.is_alive():
            self.kill()
