"""Rules over a window of answers: does what comes today still look like what the guard was fitted on?

Each detector's scores are compared with those of the clean images behind its threshold, by the two-sample
test of Kolmogorov and Smirnov; the number of alarms is compared with the rate that the thresholds were set
for. All p-values are adjusted together, by Benjamini and Hochberg. A difference that is certain but small is
`watch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from robustcli.proportions import clopper_pearson

State = Literal["ok", "watch", "act"]
STATES: tuple[State, ...] = ("ok", "watch", "act")
#: Adjusted p-values below which a difference is certain enough.
WATCH, ACT = 0.01, 0.001
#: What is large enough to act: the share of scores that lie elsewhere, and alarms per expected alarm.
LEAST_SHIFT, LEAST_RISE = 0.1, 1.25


class Answered(Protocol):
    """What the rules look at in one answer."""

    @property
    def accepted(self) -> bool: ...

    @property
    def scores(self) -> Mapping[str, float | None]: ...


@dataclass(frozen=True)
class Reference:
    """What a guard was fitted on.

    Args:
        n: clean images behind the thresholds.
        rank: the thresholds are the `rank`-th smallest of n values, 1 to n.
        alarms: of the n images, those that are rejected: n - rank, and fewer where values are the same.
        scores: of each detector on clean images.
        classes: names in the order of the labels; () where nobody knows them.
    """

    n: int
    rank: int
    alarms: int
    scores: Mapping[str, Sequence[float]]
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not (1 <= self.rank <= self.n and 0 <= self.alarms <= self.n - self.rank):
            raise ValueError(f"no thresholds: rank {self.rank} and {self.alarms} alarms of {self.n} images")

    @property
    def rate(self) -> float:
        """The share of clean images that is rejected on average, at most."""
        return (self.n + 1 - self.rank) / (self.n + 1)

    def to_json(self) -> dict[str, Any]:
        """JSON form, as `from_json` reads it."""
        scores = {name: list(given) for name, given in self.scores.items()}
        return {**vars(self), "scores": scores, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Reference:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError, AttributeError."""
        scores = {str(name): [float(score) for score in given] for name, given in read["scores"].items()}
        return cls(int(read["n"]), int(read["rank"]), int(read["alarms"]), scores, tuple(read["classes"]))


class Finding(NamedTuple):
    """One test: its p-value, alone and adjusted for their number; what it found, in words; how large it is.

    large: whether the difference matters, however certain it is.
    """

    rule: str
    p: float
    adjusted: float
    large: bool
    words: str

    @property
    def state(self) -> State:
        """What this test alone asks for."""
        if self.adjusted < ACT and self.large:
            return "act"
        return "watch" if self.adjusted < WATCH else "ok"

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        tested = {"rule": self.rule, "p": self.p, "adjusted": self.adjusted}
        return tested | {"state": self.state, "found": self.words}


@dataclass(frozen=True)
class Judgement:
    """What the rules say of a window: the worst of what each asks for, and why."""

    state: State
    reasons: tuple[str, ...]
    n: int
    alarms: int
    expected: float | None
    findings: tuple[Finding, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the rate of alarms."""
        return clopper_pearson(self.alarms, self.n)

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        tests = [found.to_json() for found in self.findings]
        rate = self.alarms / self.n if self.n else None
        alarms = {"alarms": self.alarms, "alarm_rate": rate, "interval": self.interval}
        judged = {"state": self.state, "reasons": self.reasons, "observations": self.n}
        return {**judged, **alarms, "expected_alarm_rate": self.expected, "tests": tests}


#: The judgement of a window without an answer.
NOTHING = Judgement("watch", ("nothing was observed",), 0, 0, None, ())


def judge(window: Sequence[Answered], reference: Reference) -> Judgement:
    """ok, watch or act, for the answers of a window in any order."""
    n, alarms = len(window), sum(not each.accepted for each in window)
    if not n:
        return NOTHING
    found, silent = [_alarm_rate(alarms, n, reference)], []
    for name, fitted in reference.scores.items():
        scores = [score for each in window if (score := each.scores.get(name)) is not None]
        if len(scores) < n:
            silent.append(f"{name} gave no finite score for {n - len(scores)} of {n} images")
        if scores and fitted:
            found.append(_shift(name, scores, fitted))
    adjusted = benjamini_hochberg([each.p for each in found])
    findings = tuple(each._replace(adjusted=p) for each, p in zip(found, adjusted, strict=True))
    states: list[State] = [each.state for each in findings] + ["watch"] * bool(silent)
    worst = max(states, key=STATES.index)
    reasons = [*(each.words for each in findings if each.state != "ok"), *silent]
    return Judgement(worst, tuple(reasons) or (_nothing(findings),), n, alarms, reference.rate, findings)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """min over j >= i of p_(j) * m / j, for the i-th smallest of m p-values; in the order of `p`.

    The expected share of false ones among those below q is at most q, for independent tests and for tests
    that go together. Source: Benjamini and Hochberg, JRSS B 57, 1995.
    """
    from scipy.stats import false_discovery_control

    return [float(value) for value in false_discovery_control(p)]


def alarm_p(alarms: int, n: int, reference: Reference) -> tuple[float, float]:
    """(P(X >= alarms), P(X <= alarms)) for n clean images: exact, whatever the scores' distribution.

    X is binomial, and its rate is known only from the images behind the thresholds: a share
    Beta(m + 1 - rank, rank) lies above the `rank`-th smallest of m values, so that X is beta-binomial. Where
    values are the same, the share is lower, but not below the Beta(a, m + 1 - a) of the a values above.
    Source: Vovk, ACML 2012, proposition 2b, arXiv:1209.2673.
    """
    from scipy.stats import betabinom

    m, above = reference.n, reference.alarms
    more = betabinom.sf(alarms - 1, n, m + 1 - reference.rank, reference.rank)
    fewer = betabinom.cdf(alarms, n, above, m + 1 - above) if above else 1.0
    return min(1.0, float(more)), min(1.0, float(fewer))


def _alarm_rate(alarms: int, n: int, reference: Reference) -> Finding:
    """More alarms than expected can be an attack. Fewer are worth a look: a detector may have died."""
    more, fewer = alarm_p(alarms, n, reference)
    p, rate, expected = min(1.0, 2 * min(more, fewer)), alarms / n, reference.rate
    words = f"{alarms} of {n} images raised an alarm ({rate:.1%}), and {expected:.1%} were expected"
    return Finding("alarm rate", p, p, rate >= LEAST_RISE * expected, f"{words} (p = {p:.2g})")


def _shift(name: str, scores: Sequence[float], fitted: Sequence[float]) -> Finding:
    from scipy.stats import ks_2samp

    result = ks_2samp(scores, fitted)
    distance, p = float(result.statistic), float(result.pvalue)
    side = "higher" if result.statistic_sign < 0 else "lower"
    words = f"scores of {name} are {side} than on clean images: distance {distance:.2f} (p = {p:.2g})"
    return Finding(name, p, p, distance >= LEAST_SHIFT, words)


def _nothing(findings: Sequence[Finding]) -> str:
    least = min(each.adjusted for each in findings)
    return f"nothing differs from the clean images of the fit (smallest adjusted p = {least:.2g})"
