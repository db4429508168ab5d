"""The state of a training run at one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from robustcli.proportions import Interval, Rate, at_chance
from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild, require_finite

_FINITE = (
    "epoch", "lr", "loss", "eps", "images_per_second", "waiting_share", "seconds", "passes_per_sample"
)  # fmt: skip
_ACCURACIES = ("clean_acc", "robust_acc", "fgsm_acc", "verified_acc", "chance")


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """Losses, accuracies and costs at one validation of a training run.

    Args:
        step: optimiser steps done. epoch: step / steps per epoch. lr: learning rate of the last step.
        loss: mean total loss since the last row. parts: means of its parts by name.
        clean_acc, robust_acc: on n validation samples, robust under `attack`; None when not measured.
        verified_acc: proven by bounds over the whole ball; measured where an objective trains for that.
        fgsm_acc: under one large step; measured where one-step training is watched.
        chance: share of the n samples that one answer for all gets right, in [0, 1]; None when not known.
        look: {n, standing, left}: images looked at more deeply, how many of them stand under `attack`, and
            how many still under the deeper look; empty where none was taken.
        peak_memory: bytes, the most so far: allocated on the GPU, else the resident size of the process.
        images_per_second: training throughput. waiting_share: share of the time without data, in [0, 1].
        threats: name of each ball of a union, such as ``linf:8/255`` -> robust accuracy in it; robust_acc is
            then the share that stands in all of them. Empty for one ball.
        seconds: since the start of the run. passes_per_sample: forward + backward passes of a step per image.
        norm, eps, attack, params, data, model, seed, hashes: as in `EvalRow`; the attack is the validation's.

    Raises ValueError when a value is not finite or a rate is not a count of n.
    """

    step: int
    epoch: float
    lr: float
    loss: float
    norm: str
    eps: float
    n: int = 0
    clean_acc: float | None = None
    robust_acc: float | None = None
    fgsm_acc: float | None = None
    verified_acc: float | None = None
    chance: float | None = None
    look: Mapping[str, int] = field(default_factory=dict)
    threats: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    waiting_share: float = 0.0
    seconds: float = 0.0
    passes_per_sample: float = 0.0
    attack: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    model: str = ""
    seed: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_finite({f"parts.{name}": value for name, value in self.parts.items()})
        require_finite({name: getattr(self, name) for name in _FINITE})
        for name in _ACCURACIES:
            value = getattr(self, name)
            if value is not None and not self._is_count(value):
                raise ValueError(f"{name}={value} is not a count of n={self.n}")
        for name, value in self.threats.items():
            if not self._is_count(value) or (self.robust_acc or 0) > value:
                raise ValueError(f"robust_acc={self.robust_acc}, and in {name} {value} of n={self.n}")

    def _is_count(self, share: float) -> bool:
        """Whether some k of the n samples are this share."""
        count = share * self.n
        return self.n >= 1 and 0 <= share <= 1 and abs(count - round(count)) <= 1e-6 * self.n

    @property
    def clean(self) -> Rate | None:
        """Right on clean validation images, or None."""
        return self._rate(self.clean_acc)

    @property
    def robust(self) -> Rate | None:
        """Right on attacked validation images, over all of them, or None."""
        return self._rate(self.robust_acc)

    @property
    def verified(self) -> Rate | None:
        """Proven right over the whole ball, over all validation images, or None."""
        return self._rate(self.verified_acc)

    @property
    def at_chance(self) -> str:
        """One sentence where clean or robust accuracy is not surely above chance; else ""."""
        return "" if self.chance is None else at_chance(self.clean, self.robust, self.chance)

    def _rate(self, share: float | None) -> Rate | None:
        return None if share is None else Rate(round(share * self.n), self.n)

    def intervals(self) -> dict[str, Interval]:
        """95 % Clopper-Pearson interval of each accuracy that was measured."""
        rates = {"clean_acc": self.clean, "robust_acc": self.robust, "verified_acc": self.verified}
        return {name: rate.exact for name, rate in rates.items() if rate is not None}

    @classmethod
    def of(cls, values: Mapping[str, Any], **common: Any) -> TrainRow:
        """A row from a flat mapping: names that are no fields are parts of the loss.

        common: fields that all rows of the run share.
        """
        known = {f.name for f in fields(cls)}
        parts = {name: float(value) for name, value in values.items() if name not in known}
        own = {name: value for name, value in values.items() if name in known}
        return cls(**{**common, **own, "parts": {**values.get("parts", {}), **parts}})

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields and the intervals."""
        intervals = {name: list(pair) for name, pair in self.intervals().items()}
        own = plain(self)
        if not self.threats:
            del own["threats"]
        return {"schema_version": SCHEMA_VERSION, "kind": "train", **own, "intervals": intervals}

    @classmethod
    def from_json(cls, row: Any) -> TrainRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("train",), partial(from_fields, cls))
