"""A setting of the whole process that several threads need at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

State = TypeVar("State")


class Switch(Generic[State]):
    """Threads that want one value share it, those that want another wait until the last of them has left.

    The first thread in remembers what was set before, the last one out puts it back. Inside its own block a
    thread may ask for another value; while it does, its outer block keeps nobody waiting. So a thread that
    waits holds nothing, and no two threads wait for each other.

    Args:
        read: what is set now.
        write: set it.
    """

    def __init__(self, read: Callable[[], State], write: Callable[[State], None]) -> None:
        self._read, self._write = read, write
        self._turn, self._own = threading.Condition(), threading.local()
        self._threads = 0  # that are inside any block
        self._sharing = 0  # of them, those that want the present value; the others wait
        self._value: State | None = None
        self._before: State | None = None

    @contextmanager
    def held(self, wanted: State) -> Iterator[None]:
        """`wanted` is set inside."""
        values: list[State] = self._own.__dict__.setdefault("values", [])
        with self._turn:
            self._enter(wanted, first=not values)
        values.append(wanted)
        try:
            yield
        finally:
            values.pop()
            with self._turn:
                self._leave(values)

    def settle(self, value: State) -> None:
        """From now on; where threads are inside a block, from its end on."""
        with self._turn:
            if self._threads:
                self._before = value
            else:
                self._write(value)

    def _enter(self, wanted: State, *, first: bool) -> None:
        """Give up the present share, if there is one; take one in `wanted` when it can be had."""
        if first and not self._threads:
            self._before = self._read()
        self._threads += first
        self._sharing -= not first
        self._turn.notify_all()
        self._take(wanted)

    def _leave(self, outer: list[State]) -> None:
        """Back to the value of the block outside; without one, the last thread restores all."""
        self._sharing -= 1
        self._turn.notify_all()
        if outer:
            self._take(outer[-1])
            return
        self._threads -= 1
        if not self._threads and self._before is not None:
            self._write(self._before)

    def _take(self, wanted: State) -> None:
        self._turn.wait_for(lambda: not self._sharing or self._value == wanted)
        if not self._sharing:
            self._write(wanted)
            self._value = wanted
        self._sharing += 1
