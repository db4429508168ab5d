"""Images of many requests -> passes of the model, by one thread; another thread keeps the evidence."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.guard.answer import Answer

Ask = Callable[[Tensor], list[Answer]]
Keep = Callable[[Tensor, list[Answer]], list[Answer]]
_PATIENCE = 0.002  # seconds that the first image waits for company


@dataclass(frozen=True)
class Job:
    """The images of one request, float32 [N, C, H, W], and the promise of their answers."""

    x: Tensor
    answered: Future[list[Answer]] = field(default_factory=Future)


class Batcher:
    """Answers the images of many requests together.

    One thread asks the model. The next batch is worked on while the evidence of the last one is written,
    and a request is answered when its evidence is.

    Args:
        ask: images -> answers.
        keep: images and their answers -> the same answers, with the hashes of what was stored.
        batch: images of one pass; a request with more of them is one pass.
        threads: of PyTorch in the thread that asks; their number belongs to that thread.
    """

    def __init__(self, ask: Ask, keep: Keep, *, batch: int, threads: int) -> None:
        self._ask, self._keep, self._batch, self._threads = ask, keep, batch, threads
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._left: Job | None = None  # a job that found no room in the last batch
        self._writer = ThreadPoolExecutor(1, "evidence")
        self._ahead = threading.Semaphore(2)  # batches that wait for the writer
        self._worker = threading.Thread(target=self._work, name="model", daemon=True)
        self._worker.start()

    def submit(self, x: Tensor) -> Future[list[Answer]]:
        """The promise of one answer for each row of x."""
        job = Job(x)
        self._jobs.put(job)
        return job.answered

    def close(self) -> None:
        """Answer what was submitted, then end."""
        self._jobs.put(None)
        self._worker.join()
        self._writer.shutdown()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while jobs := self._next():
            self._pass(jobs)

    def _next(self) -> list[Job]:
        """The jobs of the next pass; [] at the end."""
        first = self._left or self._jobs.get()
        self._left = None
        if first is None:
            return []
        jobs, images, until = [first], len(first.x), time.monotonic() + _PATIENCE
        while images < self._batch and (job := self._another(until)) is not None:
            images += len(job.x)
            if images > self._batch:
                self._left = job
                break
            jobs.append(job)
        return jobs

    def _another(self, until: float) -> Job | None:
        """A job that comes in time. The sign of the end is put back for the next batch."""
        try:
            job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        if job is None:
            self._jobs.put(None)
        return job

    def _pass(self, waiting: Sequence[Job]) -> None:
        jobs = [job for job in waiting if job.answered.set_running_or_notify_cancel()]
        if not jobs:
            return
        x = torch.cat([job.x for job in jobs])
        try:
            found = self._ask(x)
        except Exception as error:  # the requests are answered, and the thread lives on
            _fail(jobs, error)
            return
        self._ahead.acquire()
        self._writer.submit(self._write, jobs, x, found)

    def _write(self, jobs: Sequence[Job], x: Tensor, found: list[Answer]) -> None:
        try:
            kept = self._keep(x, found)
        except Exception as error:
            _fail(jobs, error)
            return
        finally:
            self._ahead.release()
        for job in jobs:
            job.answered.set_result(kept[: len(job.x)])
            kept = kept[len(job.x) :]


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.answered.set_exception(error)
