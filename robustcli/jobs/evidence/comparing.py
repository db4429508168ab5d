"""`robustcli runs compare`: which of two runs is better, and whether that is chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.claims.measured import ACCURACY, CERTIFIED, ROBUST, Measured, measured
from robustcli.errors import UsageError
from robustcli.proportions import Interval, Rate, unpaired_interval
from robustcli.records.document import Document
from robustcli.records.guard import CHANCE
from robustcli.reporting.cells import format_eps
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.paired import (
    OTHER_ATTACKS,
    Paired,
    compare,
    in_points,
    paired_table,
    same_attacks,
    sentence,
    threat,
)
from robustcli.reporting.tables import Table
from robustcli.store.latest import resolve_run
from robustcli.terminal.console import Console

_COMPARED = {ACCURACY: "clean accuracy", ROBUST: "robust accuracy", CERTIFIED: "certified accuracy"}
_WITHOUT = ("A training keeps no verdict per image, so the intervals are unpaired.",)
_DOUBTS = ("suspect", "invalid")
_UNPAIRED = (
    "Difference: second minus first. Interval: Newcombe's, of two independent samples; it is wider than one "
    "over the same samples."
)


@dataclass(frozen=True)
class Unpaired:
    """One accuracy of two runs, each on its own samples."""

    measure: str
    first: Rate
    second: Rate

    @property
    def difference(self) -> float:
        """Second minus first, in [-1, 1]."""
        return self.second.value - self.first.value

    @property
    def interval(self) -> Interval:
        """95 % interval of the difference, see `proportions.unpaired_interval`."""
        return unpaired_interval(self.first.k, self.first.n, self.second.k, self.second.n)

    @property
    def finding(self) -> str:
        """ "higher", "lower" or "no difference" of the second, by the interval at 1 - `CHANCE`."""
        counts = (self.first.k, self.first.n, self.second.k, self.second.n)
        low, high = unpaired_interval(*counts, level=1 - CHANCE)
        if low > 0:
            return "higher"
        return "lower" if high < 0 else "no difference"

    def words(self, first: str, second: str) -> str:
        """One sentence about two runs of these names."""
        points = in_points(self.difference, self.interval)
        told = f"{points}, unpaired: {self.first.n:,} and {self.second.n:,} samples"
        return sentence(self.measure, self.finding, first, second, told)


Difference = Paired | Unpaired


def runs_compare(paths: Sequence[Path], console: Console) -> dict[str, Any]:
    """Compare each run with the first one; show it and return the document.

    Raises UsageError (exit 2): fewer than two runs, a path that is no run, one that has not ended well, or
    runs of different verbs.
    """
    document = Document("runs compare")
    runs = _read(paths)
    names = _short([run.path for run in runs])
    first, others = (names[0], runs[0]), list(zip(names[1:], runs[1:], strict=True))
    answers = [_pair(first, other, console) for other in others]
    answer = document.finish(None, {"first": str(runs[0].path), "comparisons": answers})
    console.document(answer)
    return answer


def _read(paths: Sequence[Path]) -> list[Dossier]:
    if len(paths) < 2:
        raise UsageError("a comparison needs two runs", hint="robustcli runs compare RUN RUN")
    runs = [Dossier.read(resolve_run(path)) for path in paths]
    for run in runs:
        if not run.measured:
            hint = "wait for it, or go on with --resume"
            raise UsageError(f"the run has not ended well: {run.state}", where=str(run.path), hint=hint)
        if run.verb != runs[0].verb:
            told = f"{runs[0].verb} and {run.verb}"
            raise UsageError(
                f"runs of different verbs: {told}", where=str(run.path), hint="compare runs of one verb"
            )
    return runs


def _pair(first: tuple[str, Dossier], second: tuple[str, Dossier], console: Console) -> dict[str, Any]:
    (ours, a), (theirs, b) = first, second
    found = compare(a, b)
    pairs: list[Difference] = list(found.pairs)
    notes = list(found.notes)
    if pairs:
        console.table(paired_table((ours, theirs), found.pairs))
    else:
        pairs, apart = _unpaired(a, b)
        notes = [*(_WITHOUT if a.verb == "train" else notes), *apart]
        if pairs:
            console.table(_unpaired_table((ours, theirs), pairs))
    if not pairs:
        raise UsageError(f"nothing to compare: {' '.join(notes)}", where=f"{a.path}, {b.path}")
    notes += _doubts(first) + _doubts(second)
    verdicts = [*(pair.words(ours, theirs) for pair in pairs), _verdict(pairs, notes, ours, theirs)]
    for line in verdicts:
        console.result(line)
    for note in notes:
        console.warn(note)
    return {
        "second": str(b.path),
        "paired": bool(found.pairs),
        "differences": [_entry(pair) for pair in pairs],
        "words": verdicts,
        "notes": notes,
    }


def _unpaired(first: Dossier, second: Dossier) -> tuple[list[Difference], list[str]]:
    """(the accuracies that both have, as those of other samples, what to know of them)."""
    ours, theirs = (_headlines(run) for run in (first, second))
    notes = [] if ours or theirs else [f"Runs of `{first.verb}` have no accuracy of one model."]
    for run, own, other in ((first, ours, theirs), (second, theirs, ours)):
        notes += [f"Only {run.name} has measured {_COMPARED[kind]}." for kind in own if kind not in other]
    kinds = [kind for kind in ours if kind in theirs]
    alike = [kind for kind in kinds if _under(ours[kind]) == _under(theirs[kind])]
    for kind in kinds:
        if kind not in alike:
            told = " and ".join(f"`{_ball(number)}`" for number in (ours[kind], theirs[kind]))
            notes.append(f"{_COMPARED[kind].capitalize()} is not compared: the runs have the balls {told}.")
    for what in ("data", "split"):
        named = {getattr(number[ACCURACY], what) for number in (ours, theirs) if ACCURACY in number}
        if len(named) > 1:
            told = " and ".join(sorted(named))
            notes.append(f"The {what} differs ({told}): the difference is not one of the models alone.")
    if ROBUST in alike and not same_attacks(first, second):
        notes.append(OTHER_ATTACKS)
    return [Unpaired(_COMPARED[kind], ours[kind].rate, theirs[kind].rate) for kind in alike], notes


def _verdict(pairs: Sequence[Difference], notes: Sequence[str], first: str, second: str) -> str:
    """Which of two runs is better, taken together; not known where only the attack may be the weaker one."""
    if OTHER_ATTACKS in notes:
        return f"Whether {first} or {second} is better is not known: they were not attacked alike."
    higher, lower = ([pair.measure for pair in pairs if pair.finding == way] for way in ("higher", "lower"))
    if higher and lower:
        gain, price = (" and ".join(names) for names in (higher, lower))
        return f"A trade: {second} has the higher {gain}, {first} the higher {price}."
    if higher or lower:
        better, worse = (second, first) if higher else (first, second)
        what = " and ".join(higher or lower)
        return f"{better} is better than {worse}: its {what} is higher, and nothing is lower beyond chance."
    return f"Neither is better: what differs between {first} and {second} may be chance."


def _headlines(run: Dossier) -> dict[str, Measured]:
    """Metric -> the number of all samples that stands for the run: at its own radius."""
    found: dict[str, Measured] = {}
    ball = threat(run)
    for number in measured(run):
        if number.metric in _COMPARED and not (number.slice or number.step or number.model):
            if number.metric == ACCURACY or ball is None or (number.norm, number.eps) == ball:
                found.setdefault(number.metric, number)
    return found


def _under(number: Measured) -> tuple[str, float]:
    return number.norm, number.eps


def _ball(number: Measured) -> str:
    return f"{number.norm} {format_eps(number.eps, number.norm)}"


def _doubts(run: tuple[str, Dossier]) -> list[str]:
    name, dossier = run
    notes = []
    if dossier.reliability in _DOUBTS:
        notes.append(f"{name} is {dossier.reliability}: see its alarms before you believe a difference.")
    if dossier.document.get("partial"):
        notes.append(f"{name} is a part of an evaluation: no number of it is final.")
    return notes


def _unpaired_table(names: tuple[str, str], pairs: Sequence[Difference]) -> Table:
    columns = ["", *names, "difference in points", "95 % interval"]
    return Table("differences, unpaired", columns, [list(_cells(pair)) for pair in pairs], _UNPAIRED)


def _cells(pair: Difference) -> Iterator[Any]:
    low, high = pair.interval
    yield from (pair.measure, pair.first, pair.second, f"{100 * pair.difference:+.1f}")
    yield f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _entry(pair: Difference) -> dict[str, Any]:
    own: dict[str, Any] = {"n": [pair.first.n, pair.second.n]}
    if isinstance(pair, Paired):
        own = {"n": pair.n, "only_first": pair.lost, "only_second": pair.gained, "p": pair.p}
    return {
        "measure": pair.measure,
        "first": pair.first.value,
        "second": pair.second.value,
        "difference": pair.difference,
        "interval": list(pair.interval),
        "finding": pair.finding,
        **own,
    }


def _short(paths: Sequence[Path]) -> list[str]:
    """The last part of each path; the whole of it where two would be alike."""
    last = [path.resolve().name for path in paths]
    if len(set(last)) == len(last):
        return last
    return [str(path) for path in paths]
