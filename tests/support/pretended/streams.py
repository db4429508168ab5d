"""Streams and events that carry out nothing, but know what has been waited for.

Each piece of work gets a number on its stream. A stream knows up to which number of the others it comes
after them, the host up to which number of each it has waited. What a copy to the host must bring is brought
when the host has waited, and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_lock = threading.RLock()


class Stream:
    """As torch.cuda.Stream."""

    def __init__(self, device=None, priority=0, **_):
        self.number = self.done = 0  # of the last piece of work; up to which the host has waited
        self.seen: dict[Stream, int] = {}  # up to which this one comes after others
        self.pending: list[tuple[int, Callable[[], None]]] = []
        self.waited: Callable[[str], None] = lambda what: None  # the device counts

    def work(self) -> int:
        """The number of one more piece of work."""
        self.number += 1
        return self.number

    def later(self, finish: Callable[[], None]) -> None:
        """Do `finish` once the host has waited for what is on the stream now."""
        with _lock:
            self.pending.append((self.work(), finish))

    def until(self) -> dict[Stream, int]:
        """All that is done when this stream has come to where it is now."""
        return {**self.seen, self: self.number}

    def after(self, marks: dict[Stream, int]) -> None:
        """What comes now comes after these marks."""
        for stream, number in marks.items():
            self.seen[stream] = max(number, self.seen.get(stream, 0))

    def is_after(self, other: Stream, number: int) -> bool:
        """Whether this piece of work of another stream is over when what comes now begins."""
        return other is self or number <= other.done or number <= self.seen.get(other, 0)

    def wait_stream(self, stream):
        self.after(stream.until())

    def wait_event(self, event):
        self.after(event.marks)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def query(self):
        return not self.pending

    def is_capturing(self):
        return False

    def synchronize(self):
        self.waited("Stream.synchronize")
        arrive(self.until())


class Event:
    """As torch.cuda.Event."""

    def __init__(self, *_, **__):
        self.marks: dict[Stream, int] = {}
        self.waited: Callable[[str], None] = lambda what: None

    def record(self, stream=None):
        stream = stream or current()
        self.marks, self.waited = dict(stream.until()), stream.waited

    def wait(self, stream=None):
        (stream or current()).wait_event(self)

    def query(self):
        return all(number <= stream.done for stream, number in self.marks.items())

    def synchronize(self):
        self.waited("Event.synchronize")
        arrive(self.marks)

    def elapsed_time(self, end):
        return 1.0


def arrive(marks: dict[Stream, int]) -> None:
    """The host has waited for these marks: what was to be done by then is done, in order."""
    with _lock:
        for stream, number in marks.items():
            due = [finish for at, finish in stream.pending if at <= number]
            stream.pending = [(at, finish) for at, finish in stream.pending if at > number]
            stream.done = max(stream.done, number)
            for finish in due:
                finish()


_local = threading.local()  # .stream: each thread has a current stream of its own
default = Stream()


def current(device=None) -> Stream:
    return getattr(_local, "stream", default)


class use:
    """As torch.cuda.stream: a context in which this thread works on a stream."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        self.before = current()
        if self.stream is not None:
            _local.stream = self.stream
        return self.stream

    def __exit__(self, *ending):
        _local.stream = self.before
