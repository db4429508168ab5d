"""`robustcli runs ls`: a table of all runs, or their leaderboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from robustcli.errors import UsageError
from robustcli.jobs.evidence.leaderboard import leaderboard
from robustcli.jobs.evidence.listing import Listed, Skipped, find
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell, amount, format_eps, percent
from robustcli.reporting.tables import Table
from robustcli.store.identity import RUNS
from robustcli.terminal.console import Console

SORTS: dict[str, Callable[[Listed], Any]] = {
    "when": lambda run: -run.when.timestamp(),
    "name": lambda run: str(run.path),
    "data": lambda run: (run.numbers.data, str(run.path)),
    "clean": lambda run: -(run.numbers.clean_acc or 0.0),
    "robust": lambda run: -(run.numbers.robust_acc or 0.0),
    "size": lambda run: -run.size,
}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_NOTE = (
    "Numbers under other attacks, samples or balls are not comparable: `--leaderboard` ranks those that are. "
    "Those of a training are validation numbers."
)


def runs_ls(
    root: Path | None,
    console: Console,
    *,
    verb: str | None = None,
    data: str | None = None,
    sort: str = "when",
    by: str | None = None,
) -> dict[str, Any]:
    """Show the runs below `root` and return the document; by: the number of a leaderboard.

    root: None means runs/, which need not be there.
    """
    document = Document("runs ls")
    runs, skipped = found_in(root)
    runs = [run for run in runs if _chosen(run, verb, data)]
    runs.sort(key=SORTS[sort])
    content: dict[str, Any] = {"runs": [run.to_json() for run in runs]}
    if by is None:
        _show(runs, root, console)
    else:
        boards = leaderboard(runs, by)
        content |= {"by": by, "leaderboard": [board.to_json() for board in boards]}
        for board in boards:
            console.table(board.table())
        if not boards:
            console.result(f"no run in {root or RUNS} has a number {by}")
    tell(skipped, console)
    answer = document.finish(None, {**content, "skipped": told(skipped)})
    console.document(answer)
    return answer


def found_in(root: Path | None) -> tuple[list[Listed], list[Skipped]]:
    """The runs below a directory; none below runs/ that nobody has made yet. Errors as `listing.find`."""
    if root is None and not RUNS.is_dir():
        return [], []
    return find(RUNS if root is None else root)


def tell(skipped: Sequence[Skipped], console: Console) -> None:
    """A line for each directory that was skipped."""
    for entry in skipped:
        console.info(entry.line)


def told(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """The same for the document."""
    return [{"path": str(entry.path), "reason": entry.reason} for entry in skipped]


def age(text: str) -> timedelta:
    """``12h``, ``30d`` or ``2w``. Raises UsageError for anything else."""
    parsed = _AGE.fullmatch(text)
    if parsed is None:
        raise UsageError(
            f"no age: {text!r}", where="--older-than", hint="write hours, days or weeks: 12h, 30d, 2w"
        )
    return timedelta(**{_UNITS[parsed[2]]: float(parsed[1])})


def size_text(size: int) -> str:
    """``12.3 MB``; bytes below a kilobyte."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _chosen(run: Listed, verb: str | None, data: str | None) -> bool:
    if verb is not None and run.run.verb.replace(" ", "-") != verb.replace(" ", "-"):
        return False
    return data is None or run.numbers.data == data


def _show(runs: Sequence[Listed], root: Path | None, console: Console) -> None:
    if not runs:
        console.result(f"no runs in {root or RUNS}")
        return
    columns = [
        "run",
        "verb",
        "state",
        "when",
        "data",
        "model",
        "clean",
        "robust",
        "under",
        "reliability",
        "size",
    ]
    total = size_text(sum(run.size for run in runs))
    title = f"{amount(len(runs), 'run')} in {root or RUNS}, {total}"
    console.table(Table(title, columns, [_row(run) for run in runs], _NOTE))


def _row(run: Listed) -> list[Cell]:
    numbers = run.numbers
    state = f"{run.state} ({run.run.code})" if run.run.code else run.state
    when = run.when.astimezone().strftime("%Y-%m-%d %H:%M")
    return [
        *(str(run.path), run.run.verb, state, when, numbers.data or None, numbers.model or None),
        *(_share(numbers.clean_acc), _share(numbers.robust_acc), _under(run), run.reliability or None),
        size_text(run.size),
    ]


def _under(run: Listed) -> str | None:
    """The threat of the robust accuracy."""
    numbers = run.numbers
    if numbers.robust_acc is None or numbers.eps is None:
        return None
    return f"{numbers.norm}:{format_eps(numbers.eps, numbers.norm)} {numbers.attack}".rstrip()


def _share(value: float | None) -> str | None:
    return None if value is None else f"{percent(value)} %"
