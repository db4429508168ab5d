"""Rules over a window of answers: does what comes today still look like what the guard was fitted on?

Each detector's scores are compared with those of the clean images behind its threshold, by the two-sample
test of Kolmogorov and Smirnov; the number of alarms is compared with the rate that the thresholds were set
for. All p-values are adjusted together, by Benjamini and Hochberg. A difference that is certain but small is
`watch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        fpr: share of clean images that all detectors together reject, in (0, 1).
        n: clean images behind the thresholds; 0 when unknown, which counts as very many.
        scores: of each detector on these images.
    """

    fpr: float
    n: int = 0
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (0 < self.fpr < 1 and self.n >= 0):
            raise ValueError(f"a reference needs 0 < fpr < 1 and n >= 0, got {self.fpr} and {self.n}")

    def to_json(self) -> dict[str, Any]:
        """JSON form, as `from_json` reads it."""
        return {"fpr": self.fpr, "n": self.n, "scores": {name: list(s) for name, s in self.scores.items()}}

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Reference:
        """The reference in a manifest or a store. Raises KeyError, TypeError, ValueError."""
        scores = {str(name): [float(score) for score in given] for name, given in read["scores"].items()}
        return cls(float(read["fpr"]), int(read["n"]), scores)


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
    expected: float
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


def judge(window: Sequence[Answered], reference: Reference) -> Judgement:
    """ok, watch or act, for the answers of a window in any order."""
    n, alarms = len(window), sum(not each.accepted for each in window)
    if not n:
        return Judgement("watch", ("nothing was observed",), 0, 0, reference.fpr, ())
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
    return Judgement(worst, tuple(reasons) or (_nothing(findings),), n, alarms, reference.fpr, findings)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """min over j >= i of p_(j) * m / j, for the i-th smallest of m p-values; in the order of `p`.

    The expected share of false ones among those below q is at most q, for independent tests and for tests
    that go together. Source: Benjamini and Hochberg, JRSS B 57, 1995.
    """
    from scipy.stats import false_discovery_control

    return [float(value) for value in false_discovery_control(p)]


def alarm_p(alarms: int, n: int, fpr: float, fitted_on: int) -> tuple[float, float]:
    """(P(X >= alarms), P(X <= alarms)) among n clean images, for a threshold at rate `fpr`. Both are exact.

    X is binomial where the rate of false alarms is known. A threshold that is an order statistic of m clean
    scores has the rate Beta((m + 1) fpr, (m + 1) (1 - fpr)), whatever their distribution, and X is
    beta-binomial. Source: Vovk, ACML 2012, proposition 2b, arXiv:1209.2673.
    """
    from scipy.stats import betabinom, binom

    if not fitted_on:
        more, fewer = binom.sf(alarms - 1, n, fpr), binom.cdf(alarms, n, fpr)
    else:
        shape = (n, (fitted_on + 1) * fpr, (fitted_on + 1) * (1 - fpr))
        more, fewer = betabinom.sf(alarms - 1, *shape), betabinom.cdf(alarms, *shape)
    return min(1.0, float(more)), min(1.0, float(fewer))


def _alarm_rate(alarms: int, n: int, reference: Reference) -> Finding:
    """More alarms than expected can be an attack. Fewer are worth a look: a detector may have died."""
    more, fewer = alarm_p(alarms, n, reference.fpr, reference.n)
    p, rate = min(1.0, 2 * min(more, fewer)), alarms / n
    words = f"{alarms} of {n} images raised an alarm ({rate:.1%}), and {reference.fpr:.1%} were expected"
    return Finding("alarm rate", p, p, rate >= LEAST_RISE * reference.fpr, f"{words} (p = {p:.2g})")


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
