"""What the evaluation of a guarded model found: three numbers, the curves of its detectors, each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustcli.proportions import Rate, sign_test
from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild, require_finite

#: The three numbers that are never shown apart.
VIEWS = ("bare", "oblivious", "adaptive")
#: A difference that chance makes less often than this is called one.
CHANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class GuardRow:
    """A guarded model beside its bare network, over the same n samples.

    Args:
        data, split, norm, eps, seed, n, model, hashes: as in `EvalRow`.
        members: networks that vote. defences: name and parameters of each, with its label.
        fpr: share of clean images that the thresholds were set to reject; None without a detector.
        draws: passes per judgement; more than 1 for a randomised model.
        clean_right: samples whose clean image is right and accepted.
        rejections: clean images that are rejected. rejected_right: of these, the ones with the right class.
        bare_right: clean images that the bare network is right on.
        bare_standing, oblivious_standing, adaptive_standing: samples that stand, see `evaluation.guarded`.
        gained: samples that stand under the adaptive attack and not without the guard. lost: the other way
            round.
        attacks: labels of the attacks on the bare network. adaptive_attacks: of those on the guarded one.
        half_standing: samples that the bare network holds at eps / 2; None where that was not measured.
        planted: (found, n) of the points that were planted behind the defences; None without any.
        votes: successful passes among n * draws fresh ones over the adaptive points; None with one draw.
        at_fpr: what would stand at other false-positive rates: (rate, oblivious, adaptive). The points stay
            as they are.

    Raises ValueError when the counts contradict each other.
    """

    data: str
    split: str
    norm: str
    eps: float
    seed: int
    n: int
    model: str
    hashes: Mapping[str, str]
    members: int
    defences: Sequence[Mapping[str, Any]]
    fpr: float | None
    draws: int
    clean_right: int
    rejections: int
    rejected_right: int
    bare_right: int
    bare_standing: int
    oblivious_standing: int
    adaptive_standing: int
    gained: int
    lost: int
    attacks: Sequence[str]
    adaptive_attacks: Sequence[str]
    half_standing: int | None = None
    planted: Sequence[int] | None = None
    votes: int | None = None
    at_fpr: Sequence[Sequence[float]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        require_finite({"eps": self.eps})
        if not 0 <= self.adaptive_standing <= self.oblivious_standing <= self.clean_right <= self.n:
            counts = (self.adaptive_standing, self.oblivious_standing, self.clean_right, self.n)
            raise ValueError(f"adaptive <= oblivious <= clean_right <= n does not hold: {counts}")
        if not 0 <= self.bare_standing <= self.bare_right <= self.n:
            raise ValueError(f"bare: {self.bare_standing} stand of {self.bare_right} right ones")
        if not 0 <= self.rejected_right <= self.rejections <= self.n - self.clean_right:
            raise ValueError(f"{self.rejections} rejected, {self.rejected_right} of them right")
        if self.gained - self.lost != self.adaptive_standing - self.bare_standing:
            raise ValueError(
                f"gained={self.gained} and lost={self.lost} are not the difference of the numbers"
            )

    def standing(self, view: str) -> Rate:
        """The share that stands: view is one of `VIEWS`."""
        return Rate(getattr(self, f"{view}_standing"), self.n)

    @property
    def clean_rejected(self) -> Rate:
        """Clean images that are rejected."""
        return Rate(self.rejections, self.n)

    @property
    def finding(self) -> str:
        """ "holds", "holds nothing" or "harms": adaptive against bare, by the exact sign test at `CHANCE`."""
        if sign_test(self.gained, self.lost) < CHANCE:
            return "holds"
        if sign_test(self.lost, self.gained) < CHANCE:
            return "harms"
        return "holds nothing"

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields, the rates and their intervals."""
        return {"schema_version": SCHEMA_VERSION, "kind": "guard", **plain(self), **self.numbers()}

    def numbers(self) -> dict[str, Any]:
        """clean_rejected, bare, oblivious, adaptive and single_draw: each rate with its interval."""
        rejected = self.clean_rejected
        numbers: dict[str, Any] = {
            "clean_rejected": {"rate": rejected.value, "interval": list(rejected.exact)},
            "finding": self.finding,
        }
        for view in VIEWS:
            rate = self.standing(view)
            numbers[view] = {"robust_acc": rate.value, "interval": list(rate.exact)}
        if self.votes is not None:
            rate = Rate(self.votes, self.n * self.draws)
            numbers["success_per_draw"] = {"rate": rate.value, "interval": list(rate.exact)}
        return numbers

    @classmethod
    def from_json(cls, row: Any) -> GuardRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("guard",), partial(from_fields, cls))


@dataclass(frozen=True, kw_only=True)
class GuardCurveRow:
    """How well one score tells points of a wrong class from clean images.

    Args:
        score: label of a detector, or "excess" for all together.
        points: "oblivious" or "adaptive".
        clean, wrong: clean images, and points of a wrong class.
        caught: of the wrong points, those above the threshold.
        auroc: in [0, 1]; None where there are no wrong points.
        fpr, tpr: the ROC curve from (0, 0) to (1, 1).

    Raises ValueError when caught is no count of wrong, or the curve has unequal sides.
    """

    score: str
    points: str
    clean: int
    wrong: int
    caught: int
    auroc: float | None
    fpr: Sequence[float]
    tpr: Sequence[float]

    def __post_init__(self) -> None:
        if not 0 <= self.caught <= self.wrong:
            raise ValueError(f"caught={self.caught} of {self.wrong}")
        if len(self.fpr) != len(self.tpr) or self.points not in VIEWS[1:]:
            raise ValueError(
                f"{len(self.fpr)} and {len(self.tpr)} corners of a curve of {self.points!r} points"
            )

    @property
    def rate(self) -> Rate | None:
        """caught of wrong; None without wrong points."""
        return Rate(self.caught, self.wrong) if self.wrong else None

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields and the share that was caught, with its interval."""
        rate = self.rate
        derived = {
            "caught_rate": rate and rate.value,
            "intervals": {"caught_rate": rate and list(rate.exact)},
        }
        return {"schema_version": SCHEMA_VERSION, "kind": "guard-curve", **plain(self), **derived}

    @classmethod
    def from_json(cls, row: Any) -> GuardCurveRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("guard-curve",), partial(from_fields, cls))


@dataclass(frozen=True, kw_only=True)
class GuardSampleRow:
    """One sample: whether its clean image is rejected, and where it stands.

    Args:
        id: of the sample. label: name of its class.
        rejected: the clean image is.
        bare, oblivious, adaptive: whether it stands.
        votes: fresh passes in which the adaptive point is wrong and accepted; None with one draw.

    Raises ValueError where it stands under the adaptive attack and not under the oblivious points.
    """

    id: int
    label: str
    rejected: bool
    bare: bool
    oblivious: bool
    adaptive: bool
    votes: int | None = None

    def __post_init__(self) -> None:
        if self.adaptive > self.oblivious or (self.rejected and self.oblivious):
            raise ValueError(f"sample {self.id} stands where it cannot")

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields."""
        return {"schema_version": SCHEMA_VERSION, "kind": "guard-sample", **plain(self)}

    @classmethod
    def from_json(cls, row: Any) -> GuardSampleRow:
        """The line again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("guard-sample",), partial(from_fields, cls))
