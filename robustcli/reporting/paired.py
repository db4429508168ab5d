"""Two runs on the same samples, verdict for verdict: how far apart they are, and whether that is chance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustcli.proportions import Interval, Rate, mcnemar, paired_interval
from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import CHANCE, GuardRow, GuardSampleRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.tables import Table

#: The only number of them that holds without a ball.
CLEAN = "clean accuracy"
ROBUST = "robust accuracy"
CERTIFIED = "certified accuracy"

OTHER_ATTACKS = "The attacks of the two runs differ: a weaker attack leaves a higher robust accuracy."

#: id of a sample -> whether it counts for a number.
Verdicts = Mapping[int, bool]


@dataclass(frozen=True)
class Paired:
    """One accuracy of two runs, on the n >= 1 samples that both have measured.

    Args:
        measure: "clean accuracy", "robust accuracy" or "certified accuracy".
        n: samples of both. right: in the first run.
        gained: right in the second run alone. lost: right in the first run alone.
    """

    measure: str
    n: int
    right: int
    gained: int
    lost: int

    @property
    def first(self) -> Rate:
        """The accuracy of the first run on these samples."""
        return Rate(self.right, self.n)

    @property
    def second(self) -> Rate:
        """The accuracy of the second run on these samples."""
        return Rate(self.right + self.gained - self.lost, self.n)

    @property
    def difference(self) -> float:
        """Second minus first, in [-1, 1]."""
        return (self.gained - self.lost) / self.n

    @property
    def interval(self) -> Interval:
        """95 % score interval of the difference, see `proportions.paired_interval`."""
        return paired_interval(self.gained, self.lost, self.n)

    @property
    def p(self) -> float:
        """How likely chance alone makes such a difference, in either direction: McNemar's exact test."""
        return mcnemar(self.gained, self.lost)

    @property
    def finding(self) -> str:
        """ "higher", "lower" or "no difference" of the second, by the exact test at `CHANCE`."""
        if self.p >= CHANCE:
            return "no difference"
        return "higher" if self.gained > self.lost else "lower"

    def words(self, first: str, second: str) -> str:
        """One sentence about two runs of these names."""
        told = (
            f"{in_points(self.difference, self.interval)}, p = {self.p:.2g}, on the same {self.n:,} samples"
        )
        return sentence(self.measure, self.finding, first, second, told)


def in_points(difference: float, interval: Interval) -> str:
    """``+1.5 points [-0.3, +3.2]``: a difference in [-1, 1] and its interval."""
    low, high = interval
    return f"{100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def sentence(measure: str, finding: str, first: str, second: str, told: str) -> str:
    """What was found of two runs of these names. told: the numbers that it rests on."""
    if finding == "no difference":
        return f"{measure}: no difference beyond chance between {first} and {second} ({told})."
    return f"{measure}: {second} is {finding} than {first} ({told})."


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common. notes: why a number is missing here, and what else differs."""

    pairs: Sequence[Paired]
    notes: Sequence[str]


def compare(first: Dossier, second: Dossier) -> Comparison:
    """Every accuracy that both runs measured on the same samples and under the same threat."""
    reason = _apart(first, second)
    if reason:
        return Comparison((), (reason,))
    notes: list[str] = []
    ours, theirs = verdicts(first), verdicts(second)
    shared = [measure for measure in ours if measure in theirs]
    if shared != [CLEAN] and threat(first) != threat(second):
        told = " and ".join(f"`{_ball(run)}`" for run in (first, second))
        notes.append(f"Only clean accuracy is compared: the runs have the balls {told}.")
        shared = [measure for measure in shared if measure == CLEAN]
    pairs = [pair for name in shared if (pair := paired(name, ours[name], theirs[name])) is not None]
    if not pairs:
        notes.append("The runs have no measured sample in common.")
    if threat(first) == threat(second) and not same_attacks(first, second):
        notes.append(OTHER_ATTACKS)
    if pairs and pairs[0].n < max(len(ours[pairs[0].measure]), len(theirs[pairs[0].measure])):
        notes.append(f"Compared are the {pairs[0].n:,} samples that both runs have measured.")
    return Comparison(pairs, notes)


def paired(measure: str, first: Verdicts, second: Verdicts) -> Paired | None:
    """The accuracy on the samples that both have; None without such a sample."""
    shared = first.keys() & second.keys()
    if not shared:
        return None
    return Paired(
        measure,
        n=len(shared),
        right=sum(first[i] for i in shared),
        gained=sum(second[i] and not first[i] for i in shared),
        lost=sum(first[i] and not second[i] for i in shared),
    )


def verdicts(run: Dossier) -> dict[str, dict[int, bool]]:
    """Accuracy -> verdict of each sample of a run; {} where it has no samples.

    Under a guard, robust is who stands under the attack that knows it.
    """
    ball = threat(run)
    eps = ball[1] if ball is not None else 0.0
    found: dict[str, dict[int, bool]] = {}
    for row in run.samples:
        if isinstance(row, (SampleRow, GuardSampleRow, CertificateRow)):
            for measure, holds in _holds(row, eps):
                found.setdefault(measure, {})[row.id] = holds
    return found


def threat(run: Dossier) -> tuple[str, float] | None:
    """(norm, eps) under which the run measured its robust accuracy; None where it has none."""
    if (worst := run.eval_row("worst")) is not None:
        return worst.norm, worst.eps
    if rows := run.of(GuardRow):
        return rows[0].norm, rows[0].eps
    if certified := run.of(CertifyRow):
        return certified[0].norm, float(run.document.get("eps", certified[-1].eps))
    return None


def attacks(run: Dossier) -> list[str]:
    """The attacks of the run as its document names them."""
    entries = run.document.get("attacks") or []
    return [str(entry.get("name")) if isinstance(entry, Mapping) else str(entry) for entry in entries]


def asked(run: Dossier) -> str:
    """Equal for two runs that were asked for the same attacks, with all parameters, on the same target.

    What a diagnosis adds to them does not count: it only makes a number harder to reach.
    """
    config = run.config
    if run.verb == "train":
        train = config.get("train")
        told = [train.get("val_attack") if isinstance(train, Mapping) else None]
    else:
        target = config["eval"].get("target") if isinstance(config.get("eval"), Mapping) else None
        told = [config.get("attacks") or attacks(run), target]
    return json.dumps(told, sort_keys=True, default=str)


def same_attacks(first: Dossier, second: Dossier) -> bool:
    """Whether two runs were asked for the same attacks, and were attacked by them and by no others."""
    return asked(first) == asked(second) and attacks(first) == attacks(second)


def paired_table(names: tuple[str, str], pairs: Sequence[Paired]) -> Table:
    """One line per accuracy of two runs of these names."""
    columns = ["", *names, "difference in points", "95 % interval", "only first", "only second", "p"]
    rows: list[list[Cell]] = []
    for pair in pairs:
        low, high = pair.interval
        points, ends = f"{100 * pair.difference:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        rows.append(
            [
                pair.measure,
                pair.first,
                pair.second,
                points,
                ends,
                pair.lost,
                pair.gained,
                float(f"{pair.p:.2g}"),
            ]
        )
    note = (
        "Difference: second minus first, sample by sample. Interval: Tango's score interval. "
        "p: McNemar's exact test."
    )
    return Table("paired differences", columns, rows, note)


def _holds(row: SampleRow | GuardSampleRow | CertificateRow, eps: float) -> Iterable[tuple[str, bool]]:
    """(accuracy, verdict) of one sample. eps: radius of the threat, in pixel units of [0, 1]."""
    if isinstance(row, SampleRow):
        return ((CLEAN, row.correct), (ROBUST, row.correct and row.broken_by is None))
    if isinstance(row, GuardSampleRow):
        return ((ROBUST, row.adaptive),)
    return ((CLEAN, row.standing(0.0)), (ROBUST, row.standing(eps)), (CERTIFIED, row.certified(eps)))


def _apart(first: Dossier, second: Dossier) -> str:
    """Why the samples of two runs are not the same ones; "" where they are."""
    for run in (first, second):
        if not run.samples:
            return f"`{run.name}` has no samples to compare."
    for what in ("data", "split"):
        if _of_rows(first, what) != _of_rows(second, what):
            return f"The runs were measured on different images: their {what} differs."
    return ""


def _of_rows(run: Dossier, what: str) -> str | None:
    """The split of a run, or the hash of its data."""
    for row in run.rows:
        if isinstance(row, (EvalRow, CertifyRow, GuardRow)):
            return row.split if what == "split" else row.hashes.get("data")
    return None


def _ball(run: Dossier) -> str:
    found = threat(run)
    return "none" if found is None else f"{found[0]} {format_eps(found[1], found[0])}"
