"""How far samples are from the nearest error that a minimal-norm attack finds: all of them, and one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild


@dataclass(frozen=True, kw_only=True)
class DistanceRow:
    """The distances that one attack finds, over all samples.

    Args:
        data, split, model, norm, seed, n, hashes, attack, label, params: as in `EvalRow`.
        clean_correct: samples that are right on the clean image. broken: samples with a finite distance;
            one that is wrong on the clean image has distance 0.
        quartiles: the radii, in pixel units of [0, 1], that break a quarter, half and three quarters of the
            samples; None where no radius breaks so many.
        after: [[queries, median], ...] of an attack with a budget of queries: the radius that breaks half of
            the samples once each has had so many, None where none does. Empty for any other attack.
    """

    data: str
    split: str
    model: str
    norm: str
    seed: int
    n: int
    hashes: Mapping[str, str]
    attack: str
    label: str
    params: Mapping[str, Any]
    clean_correct: int
    broken: int
    quartiles: Sequence[float | None]
    after: Sequence[Sequence[float | None]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields. `key` names it among the rows of sweeps."""
        return {"schema_version": SCHEMA_VERSION, "kind": "distance", "key": "distance", **plain(self)}

    @classmethod
    def from_json(cls, row: Any) -> DistanceRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("distance",), partial(from_fields, cls))


@dataclass(frozen=True)
class SampleDistance:
    """The distances of one sample: a line of distances.jsonl.

    Args:
        id: of the sample. label: name of its class.
        distance: label of the attack -> distance, in pixel units of [0, 1]; None when it never broke it.
    """

    id: int
    label: str
    distance: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields."""
        return {"id": self.id, "label": self.label, "distance": plain(self.distance)}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> SampleDistance:
        """The line again. Raises TypeError for another set of keys."""
        return cls(**line)
