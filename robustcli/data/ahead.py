"""Work that one background thread does ahead of its reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
_DEPTH = 2  # results that wait for the reader


def ahead(job: Callable[[In], Out], items: Iterable[In]) -> Generator[Out]:
    """job(item) for each item, in order, computed by one background thread.

    While the reader works on one result, the thread computes up to two later ones. It ends with the last
    item, or when the generator is closed, or when a job fails. The exception of that job is raised here, in
    the place of its result. A generator that nobody closes does not keep the program from ending.
    """
    waiting: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="robustcli-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(job, item))
            if len(waiting) > _DEPTH:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
