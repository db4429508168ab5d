"""What was measured: one row per number, as JSON lines. Tables, plots, reports and gates read nothing else.

Every row carries the ball, the attack, n, 95 % intervals, seconds, passes per sample, the seed and the hashes of what was
measured, so that a table can be made again and a stale one be told. Accuracies are fractions in [0, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from robustcli.errors import DataError
from robustcli.proportions import Interval, Rate

SCHEMA_VERSION = 1
#: A set is imbalanced when its largest class has more than this many times the samples of its smallest.
IMBALANCE = 1.5
EVAL_KINDS = ("clean", "attack", "worst")


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Accuracy over n samples, clean or under attack.

    Args:
        kind: "clean"; "attack": under this attack (in a list: and all before it, each runs on what is left);
            "worst": under all attacks of the list, per sample.
        norm, eps: the ball, in pixel units of [0, 1].
        correct: samples that are right under the attack (clean: right on the clean image).
        clean_correct: samples that are right on the clean image.
        broken: of these, the ones that the attack broke; None means clean_correct - correct.
        n: samples measured, >= 1.
        attack, params: name and bound parameters; empty for clean. label: its name in tables when it has another.
        data, split, model: names of what was measured.
        seconds: wall time. passes_per_sample: forward + backward passes of the model per sample.
        seed: of all draws. hashes: name -> SHA-256 of what the number depends on (model, data, config, code).
        per_class: class name -> (correct, n) of the class.
        audit: of a short list: how many survivors were looked at once more, how many fell, what that bounds; written where there is one.

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

    def __post_init__(self) -> None:
        if self.kind not in EVAL_KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(EVAL_KINDS)}")
        if self.n < 1 or not 0 <= self.correct <= self.n or not 0 <= self.clean_correct <= self.n:
            raise ValueError(
                f"counts correct={self.correct} and clean_correct={self.clean_correct} of n={self.n} samples"
            )
        _finite({"eps": self.eps, "seconds": self.seconds, "passes_per_sample": self.passes_per_sample})
        if self.kind == "clean" and self.correct != self.clean_correct:
            raise ValueError(
                f"a clean row has one count, got correct={self.correct} and clean_correct={self.clean_correct}"
            )
        if self.broken is None:
            if self.correct > self.clean_correct:
                raise ValueError(
                    f"correct={self.correct} under attack, but only clean_correct={self.clean_correct} on clean images: say how many were `broken`"
                )
        elif not 0 <= self.broken <= self.clean_correct:
            raise ValueError(f"broken={self.broken} of {self.clean_correct} initially correct samples")
        object.__setattr__(
            self, "per_class", {name: (int(k), int(n)) for name, (k, n) in self.per_class.items()}
        )  # lists, after JSON
        if self.per_class:
            right, total = (sum(pair[i] for pair in self.per_class.values()) for i in (0, 1))
            if (right, total) != (self.correct, self.n):
                raise ValueError(
                    f"the classes sum to {right} of {total}, the row says {self.correct} of {self.n}"
                )

    @property
    def title(self) -> str:
        """Name of the row in tables."""
        return self.label or self.attack or {"clean": "none", "worst": "all attacks"}.get(self.kind, "")

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
        return Rate(
            self.clean_correct - self.correct if self.broken is None else self.broken, self.clean_correct
        )

    @property
    def balanced_acc(self) -> float | None:
        """Mean over classes of k_c / n_c, when the classes are imbalanced (more than IMBALANCE apart); else None."""
        sizes = [n for _, n in self.per_class.values() if n]
        if not sizes or max(sizes) <= IMBALANCE * min(sizes):
            return None
        return math.fsum(k / n for k, n in self.per_class.values() if n) / len(sizes)

    def intervals(self) -> dict[str, Interval]:
        """95 % Clopper-Pearson interval of each rate that the row has: clean_acc, robust_acc, attack_success."""
        return {name: rate.exact for name, rate in self._rates().items() if rate is not None}

    def _rates(self) -> dict[str, Rate | None]:
        return {"clean_acc": self.clean, "robust_acc": self.robust, "attack_success": self.success}

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields, the derived fractions and their intervals."""
        rates = {name: None if rate is None else rate.value for name, rate in self._rates().items()}
        derived = {
            **rates,
            "intervals": {name: list(pair) for name, pair in self.intervals().items()},
            "balanced_acc": self.balanced_acc,
        }
        plain = {name: value for name, value in _plain(self).items() if name != "audit" or value}
        return {"schema_version": SCHEMA_VERSION, **plain, **derived}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> EvalRow:
        """The row again. Raises DataError E-RECORD: another type, missing or unknown keys, or fractions that are not its counts'."""
        return _rebuild(cls, row, EVAL_KINDS)


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """State of a training run at one step.

    Args:
        step: optimiser steps done. epoch: step / steps per epoch. lr: learning rate of the last step.
        loss: mean total loss since the last row. parts: means of its parts by name.
        clean_acc, robust_acc: on n validation samples, robust under `attack`; None when not measured. fgsm_acc: under one large step,
            where one-step training is watched.
        peak_memory: bytes, the most so far: allocated on the GPU, else the resident size of the process.
        images_per_second: training throughput. waiting_share: part of the time spent waiting for data, in [0, 1].
        seconds: since the start of the run. passes_per_sample: forward + backward passes of one step per image.
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
        names = (
            "epoch",
            "lr",
            "loss",
            "eps",
            "images_per_second",
            "waiting_share",
            "seconds",
            "passes_per_sample",
        )
        _finite(
            {
                **{f"parts.{name}": value for name, value in self.parts.items()},
                **{name: getattr(self, name) for name in names},
            }
        )
        for name, value in (
            ("clean_acc", self.clean_acc),
            ("robust_acc", self.robust_acc),
            ("fgsm_acc", self.fgsm_acc),
        ):
            if value is not None and (
                self.n < 1
                or not 0 <= value <= 1
                or abs(value * self.n - round(value * self.n)) > 1e-6 * self.n
            ):
                raise ValueError(f"{name}={value} is not a count of n={self.n}")

    @property
    def clean(self) -> Rate | None:
        """Right on clean validation images, or None."""
        return None if self.clean_acc is None else Rate(round(self.clean_acc * self.n), self.n)

    @property
    def robust(self) -> Rate | None:
        """Right on attacked validation images, over all of them, or None."""
        return None if self.robust_acc is None else Rate(round(self.robust_acc * self.n), self.n)

    def intervals(self) -> dict[str, Interval]:
        """95 % Clopper-Pearson interval of each accuracy that was measured."""
        return {
            name: rate.exact
            for name, rate in (("clean_acc", self.clean), ("robust_acc", self.robust))
            if rate is not None
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], **common: Any) -> TrainRow:
        """A row from a flat mapping: names that are no fields are parts of the loss. `common`: fields all rows share."""
        known = {f.name for f in fields(cls)}
        parts = {name: float(value) for name, value in values.items() if name not in known}
        return cls(
            **{
                **common,
                **{name: value for name, value in values.items() if name in known},
                "parts": {**values.get("parts", {}), **parts},
            }
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields and the intervals."""
        intervals = {name: list(pair) for name, pair in self.intervals().items()}
        return {"schema_version": SCHEMA_VERSION, "kind": "train", **_plain(self), "intervals": intervals}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TrainRow:
        """The row again. Raises DataError E-RECORD as `EvalRow.from_json`."""
        return _rebuild(cls, row, ("train",))


Row = TypeVar("Row", EvalRow, TrainRow)


def read_rows(path: Path) -> list[EvalRow | TrainRow]:
    """The rows of a JSON-lines file, in its order. A last line without a line break (a killed writer's) is left out.

    Raises DataError E-RECORD naming file:line for anything that is not a row, or when the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the records: {error}", where=str(path), code="E-RECORD") from error
    lines = text.split("\n")[:-1]
    rows: list[EvalRow | TrainRow] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(
                TrainRow.from_json(row)
                if isinstance(row, dict) and row.get("kind") == "train"
                else EvalRow.from_json(row)
            )
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not a JSON object: {error}", where=f"{path}:{number}", code="E-RECORD"
            ) from error
        except DataError as error:
            raise DataError(error.what, where=f"{path}:{number}", hint=error.hint, code=error.code) from error
    return rows


def eval_rows(path: Path) -> list[EvalRow]:
    """The evaluation rows of a file; errors as `read_rows`."""
    return [row for row in read_rows(path) if isinstance(row, EvalRow)]


def train_rows(path: Path) -> list[TrainRow]:
    """The training rows of a file; errors as `read_rows`."""
    return [row for row in read_rows(path) if isinstance(row, TrainRow)]


def _rebuild(cls: type[Row], row: Any, kinds: Sequence[str]) -> Row:
    """`row` as an object, checked: derived values must be what its counts give."""
    hint = "records are written by robustcli and not edited by hand; measure again"
    if (
        not isinstance(row, Mapping)
        or row.get("kind") not in kinds
        or row.get("schema_version") != SCHEMA_VERSION
    ):
        raise DataError(
            f"not a row of kind {' or '.join(kinds)}, schema version {SCHEMA_VERSION}",
            hint=hint,
            code="E-RECORD",
        )
    try:
        known = {name: value for name, value in row.items() if name in {f.name for f in fields(cls)}}
        for name in known.keys() & {"correct", "clean_correct", "n", "step", "seed"}:
            if type(known[name]) is not int:
                raise TypeError(f"{name}={known[name]!r} is not a whole number")
        built = cls(**known)
        again = built.to_json()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not a row of kind {row['kind']}: {error}", hint=hint, code="E-RECORD") from error
    if differing := sorted(set(row) ^ set(again)) or [
        name for name in again if not _same(row[name], again[name])
    ]:
        raise DataError(
            f"{differing[0]} does not follow from the counts of this row of kind {row['kind']}",
            hint=hint,
            code="E-RECORD",
        )
    return built


def _same(a: Any, b: Any) -> bool:
    """Equal; floats to 1e-9, since another scipy may round an interval differently."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return bool(a == b)


def _plain(value: Any) -> Any:
    """In terms of JSON: what `json.loads` gives back."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _finite(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} is not finite")
