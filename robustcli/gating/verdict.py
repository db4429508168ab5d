"""PASS, FAIL or INCONCLUSIVE: of one threshold, and of a gate with all of its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from robustcli.gating.evidence import ALPHA, Evidence
from robustcli.gating.threshold import Threshold
from robustcli.proportions import Interval
from robustcli.records.alarm import Alarm

Word = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Verdict:
    """Of one threshold.

    value, n, interval: as measured, with its one-sided bounds at `alpha`.
    note: what the reader must know besides, such as which class it is.
    """

    threshold: Threshold
    word: Word
    value: float
    n: int
    interval: Interval
    alpha: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """What is inconclusive passes unless it was to be proven."""
        return self.word == "PASS" or (self.word == "INCONCLUSIVE" and self.threshold.mode != "prove")

    @property
    def measured(self) -> str:
        """`0.4310 [0.4050, 0.4570] of 1000`."""
        low, high = self.interval
        note = f", {self.note}" if self.note else ""
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}] of {self.n}{note}"

    @property
    def line(self) -> str:
        """`FAIL: robust_acc >= 0.45 (evidence): measured 0.4310 [0.4050, 0.4570] of 1000`."""
        return f"{self.word}: {self.threshold.words} ({self.threshold.mode}): measured {self.measured}"

    @property
    def required(self) -> str:
        """`0.4310 [0.4050, 0.4570] of 1000, and must be >= 0.45 (evidence)`."""
        sign = self.threshold.words.removeprefix(f"{self.threshold.name} ")
        return f"{self.measured}, and must be {sign} ({self.threshold.mode})"

    def to_json(self) -> dict[str, Any]:
        """One entry of `thresholds` in the document of `gate`."""
        threshold = self.threshold
        return {
            "metric": threshold.name,
            threshold.bound: threshold.limit,
            "mode": threshold.mode,
            "verdict": self.word,
            "passed": self.passed,
            "value": self.value,
            "n": self.n,
            "interval": list(self.interval),
            "alpha": self.alpha,
            "where": threshold.where,
            **({"baseline": threshold.baseline} if threshold.baseline else {}),
            **({"note": self.note} if self.note else {}),
        }


def judge(threshold: Threshold, evidence: Evidence, alpha: float = ALPHA, note: str = "") -> Verdict:
    """The verdict of one look. alpha: what of the threshold's error this look may spend."""
    word = _word(threshold, evidence, alpha)
    interval = evidence.interval(alpha)
    return Verdict(threshold, word, evidence.value, evidence.n, interval, alpha, note)


def _word(threshold: Threshold, evidence: Evidence, alpha: float) -> Word:
    bound, limit = threshold.bound, threshold.limit
    if threshold.mode == "point":
        met = evidence.value >= limit if bound == "min" else evidence.value <= limit
        return "PASS" if met else "FAIL"
    if evidence.missed(bound, limit, alpha):
        return "FAIL"
    return "PASS" if evidence.reached(bound, limit, alpha) else "INCONCLUSIVE"


@dataclass(frozen=True)
class Outcome:
    """What a gate ends with.

    Args:
        thresholds: all that were asked for.
        verdicts: one for each of them; [] where nothing was judged.
        alarms: of the evaluation. error: why nothing was judged, as the line of a failure; "" otherwise.
        run, about: the run that was judged, and in words what it measured.
        seconds: wall time of the gate.
    """

    thresholds: Sequence[Threshold]
    verdicts: Sequence[Verdict] = ()
    alarms: Sequence[Alarm] = ()
    error: str = ""
    run: str = ""
    about: str = ""
    seconds: float = 0.0
    looks: Sequence[int] = field(default_factory=tuple)

    @property
    def word(self) -> Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]:
        """The worst of all verdicts; ERROR where nothing was judged."""
        words = {verdict.word for verdict in self.verdicts}
        if self.error or not words:
            return "ERROR"
        if "FAIL" in words:
            return "FAIL"
        return "INCONCLUSIVE" if "INCONCLUSIVE" in words else "PASS"

    @property
    def passed(self) -> bool:
        """Whether the gate lets the model through."""
        return self.word != "ERROR" and all(verdict.passed for verdict in self.verdicts)
