"""What was proven: one row per radius, and one row per sample.

Both kinds hold what attacks found on the same samples, so that proof and attack stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustcli.proportions import Interval, Rate
from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild, require_finite

STATUSES = ("verified", "falsified", "unknown", "abstain")


@dataclass(frozen=True, kw_only=True)
class CertifyRow:
    """How many of n samples are proven at one radius, and how many no attack broke within it.

    Args:
        method: smoothing, ibp, crown, cascade and so on.
        norm, eps: the radius, in pixel units of [0, 1]; 0 = the clean images.
        certified: samples that are proven to be right at this radius.
        standing: samples that are right on the clean image, and that no attack broke within this radius.
        n: samples measured, >= 1.
        attacks: labels of the attacks; [] for the clean images.
        data, split, model, seed, hashes: as in `EvalRow`.

    Raises ValueError when the counts contradict each other.
    """

    method: str
    norm: str
    eps: float
    certified: int
    standing: int
    n: int
    attacks: Sequence[str] = ()
    data: str = ""
    split: str = ""
    model: str = ""
    seed: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.certified <= self.n or not 0 <= self.standing <= self.n:
            told = f"certified={self.certified} and standing={self.standing}"
            raise ValueError(f"counts {told} of n={self.n} samples")
        require_finite({"eps": self.eps})

    @property
    def certified_acc(self) -> Rate:
        """Proven to be right, over all samples."""
        return Rate(self.certified, self.n)

    @property
    def robust_acc(self) -> Rate:
        """Right, and broken by no attack, over all samples."""
        return Rate(self.standing, self.n)

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields, the rates and their intervals."""
        rates = {"certified_acc": self.certified_acc, "robust_acc": self.robust_acc}
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "certify",
            **plain(self),
            **{name: rate.value for name, rate in rates.items()},
            "intervals": {name: list(rate.exact) for name, rate in rates.items()},
        }

    @classmethod
    def from_json(cls, row: Any) -> CertifyRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("certify",), partial(from_fields, cls))


@dataclass(frozen=True, kw_only=True)
class CertificateRow:
    """One sample: what is proven of it, and where an attack broke it.

    Args:
        id: of the sample in its stored split. file: path of its image below the root of the data set; None
            for data that lie in arrays.
        label: name of its class.
        predicted: the class that the certificate is about; None where the method abstains.
        clean: the class that the attacked classifier gives to the clean image. It differs from `predicted`
            only where that classifier is sampled.
        radius: proven for `predicted`, in pixel units of [0, 1]; 0 where nothing is.
        status: at the radius of the threat: verified, falsified, unknown or abstain.
        stage: what gave the status: a method of proof, or the label of an attack.
        seconds: wall time of the proof.
        broken_at: the smallest radius at which an attack broke the sample; attacked: the class there;
            broken_by: label of the attack. All three are None where none did.
        evidence: counts of a sample, or a margin in logits.

    Raises ValueError when the fields contradict each other.
    """

    id: int
    file: str | None
    label: str
    predicted: str | None
    clean: str | None
    radius: float
    status: str
    stage: str
    seconds: float
    broken_at: float | None = None
    attacked: str | None = None
    broken_by: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")
        if not self.radius >= 0 or (self.radius and self.predicted is None):
            raise ValueError(f"radius={self.radius}, but predicted={self.predicted!r}")
        if len({self.broken_at is None, self.attacked is None, self.broken_by is None}) > 1:
            raise ValueError(f"broken_at={self.broken_at}, but broken_by={self.broken_by!r}")
        require_finite({"radius": self.radius, "seconds": self.seconds})

    @property
    def right(self) -> bool:
        """Whether the clean image is classified right."""
        return self.label in (self.predicted, self.clean)

    def certified(self, radius: float) -> bool:
        """Whether the true class is proven at this radius; at 0: whether the certificate names it."""
        return self.predicted == self.label and self.radius >= radius

    def standing(self, radius: float) -> bool:
        """Whether the sample is right, and no attack broke it within this radius."""
        return self.right and (self.broken_at is None or self.broken_at > radius)

    @property
    def inverted(self) -> bool:
        """Whether an attack broke the sample where the certificate says that none can."""
        return self.broken_at is not None and self.certified(self.broken_at)

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields."""
        return {"schema_version": SCHEMA_VERSION, "kind": "certificate", **plain(self)}

    @classmethod
    def from_json(cls, row: Any) -> CertificateRow:
        """The line again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("certificate",), partial(from_fields, cls))


def certify_rows(
    samples: Sequence[CertificateRow],
    radii: Sequence[float],
    attacks: Sequence[str],
    common: Mapping[str, Any],
) -> list[CertifyRow]:
    """One row for the clean images, radius 0, and one for each radius.

    samples: at least one. common: the fields that all rows share.
    """
    return [
        CertifyRow(
            eps=radius,
            certified=sum(sample.certified(radius) for sample in samples),
            standing=sum(sample.standing(radius) for sample in samples),
            n=len(samples),
            attacks=list(attacks) if radius else [],
            **common,
        )
        for radius in (0.0, *radii)
    ]


def average_radius(samples: Sequence[CertificateRow]) -> tuple[float, Interval]:
    """(the average certified radius, its 95 % interval m +- 1.96 s / sqrt n), 0 for a sample that is wrong.

    A radius is a mean and no share, so that the interval is the normal one, cut at 0. Source: Zhai et al.,
    MACER, ICLR 2020, arXiv:2001.02378.
    """
    radii = [sample.radius * sample.certified(0.0) for sample in samples]
    n = len(radii)
    mean = sum(radii) / n
    spread = (sum((radius - mean) ** 2 for radius in radii) / max(1, n - 1)) ** 0.5
    half = 1.96 * spread / n**0.5
    return mean, (max(0.0, mean - half), mean + half)
