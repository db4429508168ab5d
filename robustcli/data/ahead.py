"""Work that one background thread does ahead of its reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ahead(job: Callable[[In], Out], items: Iterable[In], depth: int = 2) -> Generator[Out]:
    """job(item) for each item, in order; while the reader works on one result, up to `depth` >= 1 later ones are being made.

    One thread makes all of them, one after the other. It ends with the last item, when the generator is closed, and when a job fails, whose
    exception is raised here in its place. A generator that nobody closes does not keep the program from ending.
    """
    waiting: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="robustcli-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(job, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
