"""Runs in the order of a number, and only those whose numbers can be compared.

Comparable are runs of the same data and split, under the same ball, attacked in the same way on the same
samples. Whatever differs in one of these stands in a table of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustcli.jobs.evidence.listing import Listed
from robustcli.reporting.cells import Cell, format_eps, percent
from robustcli.reporting.tables import Table

BY = ("robust_acc", "clean_acc", "certified_acc")
_WORDS = {
    "robust_acc": "robust accuracy",
    "clean_acc": "clean accuracy",
    "certified_acc": "certified accuracy",
}
_ALIKE = ("eval", "attack", "demo")  # verbs that attack a bare model in the same way
_NEAR = "Neighbours may differ by chance: `robustcli runs compare A B` says it."
_OTHER = "Not comparable with the other tables of this threat: other attacks or other samples."
_VALIDATION = "Validation numbers, and validation chose the checkpoints: no rank of final models."


@dataclass(frozen=True)
class Board:
    """Runs whose numbers can be compared, the best first.

    Args:
        by: the number that orders them, one of `BY`.
        ranked: the runs. doubted: those that get no rank: invalid, partial or not ended.
        alone: whether no other board has the same data, split and ball.
    """

    by: str
    ranked: Sequence[Listed]
    doubted: Sequence[Listed]
    alone: bool

    @property
    def first(self) -> Listed:
        """Any of them: for what they share."""
        return (*self.ranked, *self.doubted)[0]

    @property
    def ranks(self) -> list[int]:
        """Of `ranked`, from 1; equal numbers share one."""
        values = [getattr(run.numbers, self.by) for run in self.ranked]
        return [1 + sum(other > value for other in values) for value in values]

    @property
    def title(self) -> str:
        """What they share."""
        numbers = self.first.numbers
        ids = self.first.run.hashes.get("ids", "")
        samples = f"n = {numbers.n}" if numbers.n is not None else ""
        parts = [
            f"{numbers.data or 'unknown data'} {numbers.split}".strip(),
            _ball(self.first),
            numbers.attack,
        ]
        return ", ".join(part for part in (*parts, samples, ids and f"samples {ids[:8]}") if part)

    def table(self) -> Table:
        """For people."""
        columns = ["rank", "run", "model", _WORDS[self.by], "95 % interval", "clean accuracy", "reliability"]
        ranked = zip(self.ranks, self.ranked, strict=True)
        rows = [self._row(str(rank), run) for rank, run in ranked] + [
            self._row("-", run) for run in self.doubted
        ]
        notes = [_VALIDATION] if self.first.numbers.split == "validation" else []
        notes += [_NEAR] if len(self.ranked) > 1 else []
        notes += [] if self.alone else [_OTHER]
        return Table(self.title, columns, rows, " ".join(notes))

    def _row(self, rank: str, run: Listed) -> list[Cell]:
        numbers = run.numbers
        around = (numbers.intervals or {}).get(self.by)
        shown = _interval(around)
        value, clean = getattr(numbers, self.by), numbers.clean_acc
        return [
            *(rank, str(run.path), numbers.model or None, f"{percent(value)} %", shown),
            None if clean is None else f"{percent(clean)} %",
            run.reliability,
        ]

    def to_json(self) -> dict[str, Any]:
        """The board as the document has it."""
        numbers = self.first.numbers
        ranked = zip(self.ranks, self.ranked, strict=True)
        entries = [{"rank": rank, **run.to_json()} for rank, run in ranked]
        return {
            **{key: getattr(numbers, key) for key in ("data", "split", "norm", "eps", "attack", "n")},
            "samples": self.first.run.hashes.get("ids"),
            "only_board_of_its_threat": self.alone,
            "runs": [*entries, *({"rank": None, **run.to_json()} for run in self.doubted)],
        }


def leaderboard(runs: Sequence[Listed], by: str) -> list[Board]:
    """The boards of all runs that have the number; the larger boards of a threat first."""
    groups: dict[tuple[Any, ...], list[Listed]] = {}
    for run in runs:
        if getattr(run.numbers, by) is not None:
            groups.setdefault((*_threat(run), *_way(run)), []).append(run)
    ordered = sorted(groups.items(), key=lambda group: (tuple(map(str, group[0][:5])), -len(group[1])))
    shared = [key[:5] for key, _ in ordered]
    return [_board(group, by, shared.count(key[:5]) == 1) for key, group in ordered]


def _board(runs: Sequence[Listed], by: str, alone: bool) -> Board:
    runs = sorted(runs, key=lambda run: (-getattr(run.numbers, by), str(run.path)))
    sound = [run for run in runs if run.reliability in ("ok", "suspect")]
    return Board(by, sound, [run for run in runs if run not in sound], alone)


def _threat(run: Listed) -> tuple[Any, ...]:
    """What a table of the leaderboard is about: data, split and ball, and which kind of run measured."""
    numbers, verb = run.numbers, run.run.verb
    kind = "eval" if verb in _ALIKE else verb
    return (numbers.data, numbers.split, numbers.norm, numbers.eps, kind)


def _way(run: Listed) -> tuple[Any, ...]:
    """How it was measured: attacks, n, the samples and the data by their hashes."""
    hashes = run.run.hashes
    return (run.asked, run.numbers.n, hashes.get("ids", ""), hashes.get("data", ""))


def _ball(run: Listed) -> str:
    numbers = run.numbers
    return f"{numbers.norm} {format_eps(numbers.eps, numbers.norm)}" if numbers.eps is not None else ""


def _interval(ends: Any) -> str | None:
    """``[85.6, 94.2]`` in percent; None for what is no pair of numbers."""
    if not (isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)):
        return None
    return f"[{percent(ends[0])}, {percent(ends[1])}]"
