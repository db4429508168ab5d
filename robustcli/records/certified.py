"""All rows of a certification, and the numbers that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from robustcli.proportions import Rate
from robustcli.records.alarm import Alarm, reliability
from robustcli.records.certify import STATUSES, CertificateRow, average_radius

_NAMED = 5  # samples in a message
#: What an inversion means.
WRONG = "one of the two is wrong: report it, or look whether the network answers otherwise each time"


@dataclass(frozen=True)
class Certificates:
    """What is proven of n >= 1 samples, and what attacks broke of them.

    Args:
        method: smoothing, cascade, ibp and so on.
        norm, eps: the threat, in pixel units of [0, 1].
        radii: that were asked for, ascending, eps among them.
        rows: one per sample, in the order of ids: `records.certify.CertificateRow`.
        alarms: about the model and the attacks.
    """

    method: str
    norm: str
    eps: float
    radii: Sequence[float]
    rows: Sequence[CertificateRow] = field(repr=False)
    alarms: Sequence[Alarm] = ()

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.rows)

    @property
    def certified_acc(self) -> list[float]:
        """At each radius: the share that is proven to be right, in [0, 1]."""
        return [self._certified(radius).value for radius in self.radii]

    @property
    def attacked_acc(self) -> list[float]:
        """At each radius: the share that is right and that no attack broke, in [0, 1]."""
        return [self._standing(radius).value for radius in self.radii]

    @property
    def robust_acc(self) -> float:
        """`attacked_acc` at the radius of the threat."""
        return self._standing(self.eps).value

    @property
    def clean_acc(self) -> float:
        """The share that is right on the clean image."""
        return self._standing(0.0).value

    @property
    def acr(self) -> float:
        """The average certified radius; a sample that is wrong or abstained counts as 0."""
        return average_radius(self.rows)[0]

    @property
    def statuses(self) -> dict[str, Rate]:
        """verified, falsified, unknown, abstain -> share of the samples at the radius of the threat."""
        return {name: Rate(sum(row.status == name for row in self.rows), self.n) for name in STATUSES}

    @property
    def reliability(self) -> str:
        """The level of the worst alarm: ok, suspect or invalid."""
        return reliability(list(self.alarms))

    @property
    def inverted(self) -> list[CertificateRow]:
        """Samples that an attack broke where they are certified: one of the two is wrong."""
        return [row for row in self.rows if row.inverted]

    def inversion(self) -> str:
        """The first of them, in words; "" where there is none."""
        named = [_inversion(row, self.norm) for row in self.inverted]
        if not named:
            return ""
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        return f"certified, and broken all the same: {', '.join(named[:_NAMED])}{more}"

    def to_json(self) -> dict[str, Any]:
        """The keys of the machine contract; 95 % intervals of Clopper and Pearson, the normal one for acr."""
        certified = [self._certified(radius) for radius in self.radii]
        standing = [self._standing(radius) for radius in self.radii]
        mean, around = average_radius(self.rows)
        clean, robust = self._standing(0.0), self._standing(self.eps)
        single = {"clean_acc": clean, "robust_acc": robust, **self.statuses}
        return {
            "n": self.n,
            "radii": list(self.radii),
            "certified_acc": [rate.value for rate in certified],
            "attacked_acc": [rate.value for rate in standing],
            "acr": mean,
            **{name: rate.value for name, rate in single.items()},
            "intervals": {
                "certified_acc": [list(rate.exact) for rate in certified],
                "attacked_acc": [list(rate.exact) for rate in standing],
                "acr": list(around),
                **{name: list(rate.exact) for name, rate in single.items()},
            },
            "reliability": self.reliability,
            "alarms": [alarm.to_json() for alarm in self.alarms],
        }

    def _certified(self, radius: float) -> Rate:
        return Rate(sum(row.certified(radius) for row in self.rows), self.n)

    def _standing(self, radius: float) -> Rate:
        return Rate(sum(row.standing(radius) for row in self.rows), self.n)


def _inversion(row: CertificateRow, norm: str) -> str:
    radii = f"certified to {norm} {row.radius:.4g}, broken at {row.broken_at:.4g} by {row.broken_by}"
    return f"sample {row.id} ({radii})"
