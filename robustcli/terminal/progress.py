"""How far the work is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol, cast

from robustcli.terminal.streams import Forgiving, clean

HEARTBEAT_SECONDS = 30.0


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """`n` more units are done; `fields` (loss="0.31") are shown beside them until the next call."""


class Silent:
    """Shows nothing."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Nothing to do."""


class Pace:
    """Units per second since the first `add`; what was done before says nothing about the speed."""

    def __init__(self, done: int) -> None:
        self.done = done
        self._first: tuple[float, int] | None = None

    def add(self, n: int) -> float | None:
        """Count `n`; the rate in units/s, or None while it is unknown."""
        self.done += n
        now = time.monotonic()
        if self._first is None:
            self._first = now, self.done
            return None
        first_time, first_done = self._first
        if now <= first_time:
            return None
        return (self.done - first_done) / (now - first_time)

    def shown(self, rate: float | None, total: int) -> list[str]:
        """``["12.3/s", "0:31 left"]``, as far as known."""
        if not rate:
            return []
        parts = [f"{rate:.3g}/s"]
        if total > self.done:
            parts.append(f"{clock((total - self.done) / rate)} left")
        return parts


class RichBar:
    """A task of a Rich `Progress`, with our own rate: Rich would count the steps of an earlier run."""

    def __init__(self, shown: Any, task: Any, total: int, done: int) -> None:
        self._shown, self._task, self._total, self._pace = shown, task, total, Pace(done)

    def advance(self, n: int = 1, **fields: Any) -> None:
        pace = self._pace.shown(self._pace.add(n), self._total)
        self._shown.update(self._task, advance=n, text=clean("  ".join([*pace, *_fields(fields)])))


@contextmanager
def live_bar(stream: Any, total: int | None, description: str, done: int) -> Iterator[tuple[Bar, Any]]:
    """A bar on a terminal, redrawn by Rich: (bar, Rich console that prints lines above it)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    forgiving = cast("IO[str]", Forgiving(stream))
    terminal = Console(file=forgiving, force_terminal=True, highlight=False, markup=False, emoji=False)
    # Redirecting sys.stdout would send results to stderr.
    # Redirecting sys.stderr would hand data workers a lock when they are forked.
    with Progress(*columns, console=terminal, redirect_stdout=False, redirect_stderr=False) as shown:
        task = shown.add_task(clean(description), total=total, completed=done, text="")
        yield RichBar(shown, task, total or 0, done), terminal


class Heartbeat:
    """One plain line every 10 % or 30 s, and one at the end."""

    def __init__(self, say: Callable[[str], None], total: int, description: str, done: int) -> None:
        self._say, self._total, self._description, self._pace = say, total, description, Pace(done)
        self._tenth = self._tenths()
        self._said = time.monotonic()

    def _tenths(self) -> int:
        """Whole tenths that are done; 0 while the total is unknown."""
        if not self._total:
            return 0
        return 10 * self._pace.done // self._total

    def advance(self, n: int = 1, **fields: Any) -> None:
        rate = self._pace.add(n)
        tenth, now = self._tenths(), time.monotonic()
        if tenth > self._tenth or now - self._said >= HEARTBEAT_SECONDS:
            self._tenth, self._said = tenth, now
            self._say(self._line(rate, fields))

    def _line(self, rate: float | None, fields: Mapping[str, Any]) -> str:
        done, total = self._pace.done, self._total
        amount = str(done)
        if total:
            amount = f"{100 * done // total} % {done}/{total}"
        parts = [f"{self._description}: {amount}", *self._pace.shown(rate, total), *_fields(fields)]
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``; ``?`` when it is not a time."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


def _fields(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_short(value)}" for name, value in fields.items()]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
