"""How far the work is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from robustcli.terminal.streams import Forgiving, clean

HEARTBEAT_SECONDS = 30.0
_SHORTEST_BAR, _LONGEST_BAR = 6, 40  # characters
_LONGEST, _BETWEEN = 32, "  "  # of a description beside a bar; between two fields


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, n: int = 1, total: int | None = None, **fields: Any) -> None:
        """`n` more units are done; `fields` (loss="0.31") are shown beside them until the next call.

        On a narrow terminal the first fields stay. total: units to do, where they are no longer those of the
        beginning.
        """

    def within(self, units: float, left: float | None, **fields: Any) -> None:
        """Of the units in hand, work worth `units` is done, which no `advance` has counted yet.

        left: seconds to the end, None while nobody knows.
        """


class Silent:
    """Shows nothing."""

    def advance(self, n: int = 1, total: int | None = None, **fields: Any) -> None:
        """Nothing to do."""

    def within(self, units: float, left: float | None, **fields: Any) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Amount:
    """How much is to do: a number of units, 0 = unknown, and their name, "" = none."""

    total: int
    unit: str = ""

    def of(self, total: int | None) -> Amount:
        """The same with another total; None changes nothing."""
        return self if total in (None, self.total) else Amount(total or 0, self.unit)

    def shown(self, done: int) -> str:
        """``step 12/90``."""
        amount = f"{self.unit} {done}".strip()
        return f"{amount}/{self.total}" if self.total else amount


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

    def left(self, rate: float | None, total: int) -> float | None:
        """Seconds to the end; None while they are unknown, and at the end."""
        if not rate or total <= self.done:
            return None
        return (total - self.done) / rate


class Line:
    """The columns of a live bar: what there is room for, what matters most first.

    A row is: description, bar, units done and to do, time left, the fields in their order, the rate.
    """

    def __init__(self, description: str) -> None:
        self.description = shortened(description, _LONGEST)

    def fitted(self, width: int, parts: Sequence[str]) -> tuple[str, int]:
        """(text behind the bar, width of the bar) for a terminal of `width` characters.

        A part that does not fit is left out; the first one always stays.
        """
        room = width - len(self.description) - 2 - _SHORTEST_BAR
        text = parts[0]
        for part in parts[1:]:
            if len(text) + len(_BETWEEN) + len(part) <= room:
                text += _BETWEEN + part
        return text, max(_SHORTEST_BAR, min(_LONGEST_BAR, _SHORTEST_BAR + room - len(text)))


class RichBar:
    """A task of a Rich `Progress`, with our own rate: Rich would count the steps of an earlier run."""

    def __init__(self, shown: Any, task: Any, column: Any, line: Line, amount: Amount, done: int) -> None:
        self._shown, self._task, self._column, self._line = shown, task, column, line
        self._amount, self._pace = amount, Pace(done)

    def advance(self, n: int = 1, total: int | None = None, **fields: Any) -> None:
        self._amount = self._amount.of(total)
        rate = self._pace.add(n)
        self._update(self._pace.done, self._pace.left(rate, self._amount.total), _fields(fields), rate)

    def within(self, units: float, left: float | None, **fields: Any) -> None:
        self._update(self._pace.done + units, left, _fields(fields), None)

    def _update(self, done: float, left: float | None, fields: list[str], rate: float | None) -> None:
        parts = [self._amount.shown(self._pace.done), *_left(left), *fields, *_rate(rate)]
        text, self._column.bar_width = self._line.fitted(self._shown.console.width - 1, parts)
        self._shown.update(self._task, completed=done, total=self._amount.total or None, text=clean(text))


@contextmanager
def live_bar(stream: Any, amount: Amount, description: str, done: int) -> Iterator[tuple[Bar, Any]]:
    """A bar on a terminal, redrawn by Rich: (bar, Rich console that prints lines above it)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    line, column = Line(description), BarColumn()
    columns = (
        TextColumn("{task.description}", markup=False),
        column,
        TextColumn("{task.fields[text]}", markup=False),
    )
    forgiving = cast("IO[str]", Forgiving(stream))
    terminal = Console(file=forgiving, force_terminal=True, highlight=False, markup=False, emoji=False)
    # Redirecting sys.stdout would send results to stderr.
    # Redirecting sys.stderr would hand data workers a lock when they are forked.
    with Progress(*columns, console=terminal, redirect_stdout=False, redirect_stderr=False) as shown:
        task = shown.add_task(line.description, total=amount.total or None, completed=done, text="")
        yield RichBar(shown, task, column, line, amount, done), terminal


class Heartbeat:
    """One plain line every 10 % or 30 s, and one at the end."""

    def __init__(self, say: Callable[[str], None], amount: Amount, description: str, done: int) -> None:
        self._say, self._amount, self._description, self._pace = say, amount, description, Pace(done)
        self._tenth = self._tenths(0.0)
        self._said = time.monotonic()

    def _tenths(self, units: float) -> int:
        """Whole tenths that are done, with `units` more than are counted; 0 while the total is unknown."""
        if not self._amount.total:
            return 0
        return int(10 * self._share(units))

    def _share(self, units: float) -> float:
        """The share of the total that is done; below 1 while a unit is only in hand."""
        share = (self._pace.done + units) / self._amount.total
        return min(share, 0.99) if units else share

    def advance(self, n: int = 1, total: int | None = None, **fields: Any) -> None:
        self._amount = self._amount.of(total)
        rate = self._pace.add(n)
        if self._due(0.0):
            left = self._pace.left(rate, self._amount.total)
            self._say(self._line(0.0, [*_rate(rate), *_left(left), *_fields(fields)]))

    def within(self, units: float, left: float | None, **fields: Any) -> None:
        if self._due(units):
            self._say(self._line(units, [*_left(left), *_fields(fields)]))

    def _due(self, units: float) -> bool:
        """Whether a line is due; it is then taken as said."""
        tenth, now = self._tenths(units), time.monotonic()
        if tenth <= self._tenth and now - self._said < HEARTBEAT_SECONDS:
            return False
        self._tenth, self._said = max(tenth, self._tenth), now
        return True

    def _line(self, units: float, parts: list[str]) -> str:
        amount = self._amount.shown(self._pace.done)
        if self._amount.total:
            amount = f"{int(100 * self._share(units))} % {amount}"
        return ", ".join([f"{self._description}: {amount}", *parts])


def shortened(text: str, length: int) -> str:
    """`text` on one line of at most `length` characters, the last of them … where it was longer."""
    text = " ".join(clean(text).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``; ``?`` when it is not a time."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


def _rate(rate: float | None) -> list[str]:
    return [f"{rate:.3g}/s"] if rate else []


def _left(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f"{clock(seconds)} left"]


def _fields(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_short(value)}" for name, value in fields.items()]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
