"""What a part of `gpu_suite.py` has measured so far: on the disk and in the table after each line.

A part has a budget of seconds. A line for which too little is left is not begun, and the report names it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PASSED = {None: "", True: "passed", False: "FAILED"}


class OutOfTime(Exception):
    """The budget is used up, or somebody asked for the end."""


@dataclass(frozen=True)
class Row:
    """One line of a table; `passed` is None where nothing is asked of the number."""

    name: str
    value: float
    note: str = ""
    passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """One measurement.

    need: seconds that it takes on a GPU; with less left it is not begun.
    work: makes its rows, one after the other. A row of a name that is there replaces it.
    """

    name: str
    need: float
    work: Callable[[], Iterable[Row]]


class Report:
    """Rows and facts of one part; `path` is whole JSON at every moment.

    Args:
        path: the file. It is replaced at once, never written in place.
        head: what stands first in it.
        budget: seconds, or None for no limit.
        began: time.monotonic() at which they begin to count.
    """

    def __init__(self, path: Path, head: dict[str, Any], budget: float | None, began: float) -> None:
        self.path, self._head, self._began = path, head, began
        self._ends = None if budget is None else began + budget
        self.rows: dict[str, Row] = {}
        self.left_out: list[str] = []
        self.facts: dict[str, Any] = {}
        self._line = "start"
        print(f"\n| {head['part']} on {head['device']} | value | | |\n| --- | ---: | --- | --- |", flush=True)
        self.write()

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        if self._ends is None:
            return float("inf")
        return self._ends - time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether no row has failed."""
        return all(row.passed is not False for row in self.rows.values())

    def run(self, lines: Sequence[Line]) -> None:
        """Make the lines in order, as long as the budget lasts."""
        for line in lines:
            self._line = line.name
            if self.left < line.need:
                self.leave_out(f"{line.name}: {self.left:.0f} s are left, it needs {line.need:.0f}")
                continue
            for row in line.work():
                self.add(row)

    def add(self, *rows: Row) -> None:
        """Print and write these rows."""
        for row in rows:
            self.rows[row.name] = row
            print(f"| {row.name} | {row.value:.5g} | {row.note} | {PASSED[row.passed]} |", flush=True)
        self.write()

    def leave_out(self, why: str) -> None:
        """Name what was not measured."""
        self.left_out.append(why)
        print(f"| left out: {why} | | | |", flush=True)
        self.write()

    def know(self, **facts: Any) -> None:
        """Keep documents beside the rows."""
        self.facts.update(facts)
        self.write()

    def end(self, why: str) -> None:
        """What ended the part before its last line."""
        self.leave_out(f"{why} in {self._line}, and what would have followed")

    def write(self) -> None:
        """The file as it is now."""
        found = {
            **self._head,
            "seconds": round(time.monotonic() - self._began, 1),
            "passed": self.passed,
            "left_out": self.left_out,
            "rows": [row.to_json() for row in self.rows.values()],
            **self.facts,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.new")
        beside.write_text(json.dumps(found, indent=1, default=str) + "\n")
        os.replace(beside, self.path)


def process_began() -> float:
    """time.monotonic() at the start of this process; on systems that do not tell, of this call."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.monotonic() - max(0.0, up - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.monotonic()


def end_in_time(report: Report) -> None:
    """Raise OutOfTime at the end of the budget, and on SIGTERM.

    A verb that works has its own handler of SIGTERM: it ends as it does for every user, and saves.
    """

    def ended(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime("stopped by SIGTERM, or out of time")

    def alarm(signum: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, ended)
    if report.left < float("inf"):
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, report.left))
