"""What an evaluation measured: one row for clean accuracy, one per attack, one for the worst case.

Tables, plots, reports and gates read nothing but records. A row carries the ball, the attack, n, 95 %
intervals, seconds, passes per sample, the seed and the hashes of what was measured, so that a table can be
made again and a stale one be told. Accuracies are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustcli.proportions import Interval, Rate, at_chance
from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild, require_finite

#: A set is imbalanced when its largest class has more than this many times the samples of its smallest.
IMBALANCE = 1.5
EVAL_KINDS = ("clean", "attack", "threat", "worst")
_TITLES = {"clean": "none", "threat": "all attacks", "worst": "all attacks"}


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Accuracy over n samples, clean or under attack.

    Args:
        kind: "clean"; "attack": under this attack (in a list: and all before it, each runs on what is left);
            "worst": under all attacks of the list, per sample. "threat": the same in one ball of a union,
            where "worst" is of all balls.
        norm, eps: the ball, in pixel units of [0, 1]. A union has the name of its balls and eps 0.
        correct: samples that are right under the attack (clean: right on the clean image).
        clean_correct: samples that are right on the clean image.
        broken: of these, the ones that the attack broke; None means clean_correct - correct.
        n: samples measured, >= 1.
        attack, params: name and bound parameters; empty for clean. label: its name in tables, if another.
        data, split, model: names of what was measured.
        seconds: wall time. passes_per_sample: forward + backward passes of the model per sample.
        seed: of all draws. hashes: name -> SHA-256 of what the number depends on (model, data, config, code).
        per_class: class name -> (correct, n) of the class.
        audit: of a short list of attacks: how many survivors were looked at once more, how many of them
            fell, and what that says of the others. Empty where there was no audit, and then not written.

    Raises ValueError when the counts contradict each other.
    """

    kind: str
    norm: str
    eps: float
    correct: int
    clean_correct: int
    n: int
    attack: str = ""
    label: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    broken: int | None = None
    data: str = ""
    split: str = ""
    model: str = ""
    seconds: float = 0.0
    passes_per_sample: float = 0.0
    seed: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    per_class: Mapping[str, Sequence[int]] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at_chance(self) -> str:
        """One sentence where clean or robust accuracy is not surely above chance; else "".

        Chance is one answer for all samples, so it is known where accuracies are per class.
        """
        if not self.per_class:
            return ""
        return at_chance(self.clean, self.robust, max(n for _, n in self.per_class.values()) / self.n)

    def __post_init__(self) -> None:
        if self.kind not in EVAL_KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(EVAL_KINDS)}")
        pairs = {name: (int(k), int(n)) for name, (k, n) in self.per_class.items()}  # lists, after JSON
        object.__setattr__(self, "per_class", pairs)
        self._check_counts()
        require_finite({name: getattr(self, name) for name in ("eps", "seconds", "passes_per_sample")})
        self._check_broken()
        self._check_classes()

    def _check_counts(self) -> None:
        correct, clean = self.correct, self.clean_correct
        if self.n < 1 or not 0 <= correct <= self.n or not 0 <= clean <= self.n:
            raise ValueError(f"counts correct={correct} and clean_correct={clean} of n={self.n} samples")
        if self.kind == "clean" and correct != clean:
            raise ValueError(f"a clean row has one count, got correct={correct} and clean_correct={clean}")

    def _check_broken(self) -> None:
        correct, clean, broken = self.correct, self.clean_correct, self.broken
        if broken is None and correct > clean:
            told = f"correct={correct} under attack, but only clean_correct={clean} on clean images"
            raise ValueError(f"{told}: say how many were `broken`")
        if broken is not None and not 0 <= broken <= clean:
            raise ValueError(f"broken={broken} of {clean} initially correct samples")

    def _check_classes(self) -> None:
        right, total = (sum(pair[i] for pair in self.per_class.values()) for i in (0, 1))
        if self.per_class and (right, total) != (self.correct, self.n):
            told = f"the classes sum to {right} of {total}"
            raise ValueError(f"{told}, the row says {self.correct} of {self.n}")

    @property
    def title(self) -> str:
        """Name of the row in tables."""
        return self.label or self.attack or _TITLES.get(self.kind, "")

    @property
    def clean(self) -> Rate:
        """Right on the clean image, over all samples."""
        return Rate(self.clean_correct, self.n)

    @property
    def robust(self) -> Rate | None:
        """Right under attack, over all samples; None for a clean row."""
        return None if self.kind == "clean" else Rate(self.correct, self.n)

    @property
    def success(self) -> Rate | None:
        """Broken, over the initially correct samples; None for a clean row, or when no sample was correct."""
        if self.kind == "clean" or not self.clean_correct:
            return None
        if self.broken is None:
            return Rate(self.clean_correct - self.correct, self.clean_correct)
        return Rate(self.broken, self.clean_correct)

    @property
    def balanced_acc(self) -> float | None:
        """Mean over classes of k_c / n_c; None unless the class sizes are more than IMBALANCE apart."""
        pairs = [(k, n) for k, n in self.per_class.values() if n]
        sizes = [n for _, n in pairs]
        if not sizes or max(sizes) <= IMBALANCE * min(sizes):
            return None
        return math.fsum(k / n for k, n in pairs) / len(sizes)

    def intervals(self) -> dict[str, Interval]:
        """95 % Clopper-Pearson interval of each rate that the row has."""
        return {name: rate.exact for name, rate in self._rates().items() if rate is not None}

    def _rates(self) -> dict[str, Rate | None]:
        return {"clean_acc": self.clean, "robust_acc": self.robust, "attack_success": self.success}

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields, the rates, their intervals and the balanced accuracy."""
        own = plain(self)
        if not self.audit:
            del own["audit"]
        return {
            "schema_version": SCHEMA_VERSION,
            **own,
            **{name: rate and rate.value for name, rate in self._rates().items()},
            "intervals": {name: list(pair) for name, pair in self.intervals().items()},
            "balanced_acc": self.balanced_acc,
        }

    @classmethod
    def from_json(cls, row: Any) -> EvalRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, EVAL_KINDS, partial(from_fields, cls))
