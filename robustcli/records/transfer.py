"""How many points that were made on one model break another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustcli.proportions import Rate
from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """One pair of a transfer matrix.

    Args:
        data, split, norm, eps, seed: as in `EvalRow`.
        attack: labels of all attacks. params: name and parameters of each.
        samples: samples measured. n: of these, the ones that all models classify correctly.
        source, target: short names of the models. source_reference, target_reference: as the user wrote them.
        k: of the n samples, those whose point made on the source breaks the target.
        gained: broken by the source's point and by none that was made on the target. lost: the other way
            round.
        best: the attack that k, gained and lost are of: the one that breaks most. "" in older records, which
            have one attack.
        by_attack: samples that each attack breaks.
        mi: samples that MI-FGSM alone breaks; None where it did not run.
        hashes: as in `EvalRow`, with `source` and `target` for the two models.

    Raises ValueError when k is no count of n.
    """

    data: str
    split: str
    attack: str
    params: Sequence[Mapping[str, Any]]
    norm: str
    eps: float
    seed: int
    samples: int
    n: int
    source: str
    target: str
    source_reference: str
    target_reference: str
    k: int
    gained: int
    lost: int
    hashes: Mapping[str, str]
    best: str = ""
    by_attack: Mapping[str, int] = field(default_factory=dict)
    mi: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n:
            raise ValueError(f"k={self.k} of n={self.n} samples")
        if self.mi is not None and not 0 <= self.mi <= self.k:
            raise ValueError(f"mi={self.mi} of the best attack's k={self.k}")

    @property
    def rate(self) -> Rate | None:
        """k of n; None when no sample is classified correctly by all models."""
        return Rate(self.k, self.n) if self.n else None

    @property
    def mi_rate(self) -> Rate | None:
        """What MI-FGSM alone would have said; None where it did not run or nothing was measured."""
        return Rate(self.mi, self.n) if self.mi is not None and self.n else None

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields, the rate and its interval."""
        own = plain(self)
        last = {name: own.pop(name) for name in ("gained", "lost", "best", "by_attack", "mi", "hashes")}
        return {"schema_version": SCHEMA_VERSION, "kind": "transfer", **own, **self._derived(), **last}

    def _derived(self) -> dict[str, Any]:
        rate = self.rate
        if rate is None:
            return {"rate": None, "intervals": {"rate": [0.0, 1.0]}}
        return {"rate": rate.value, "intervals": {"rate": list(rate.exact)}}

    @classmethod
    def from_json(cls, row: Any) -> TransferRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("transfer",), partial(from_fields, cls))
