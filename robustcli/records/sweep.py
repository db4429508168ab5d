"""Accuracy at one value of what a sweep varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustcli.records.common import from_fields, plain, rebuild
from robustcli.records.eval import EvalRow


@dataclass(frozen=True)
class Change:
    """How the verdicts at one value differ from those at an earlier one.

    value: the earlier one. fell: samples that stood there and do not stand here. recovered: the reverse.
    """

    value: float
    fell: int
    recovered: int

    @classmethod
    def from_json(cls, change: Mapping[str, Any] | None) -> Change | None:
        """The change again, or None as it was."""
        return None if change is None else cls(**change)


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """Accuracy under all attacks of a sweep together, at one value.

    Args:
        total: the verdicts, of kind "worst".
        key, value: what varies (eps, steps or restarts), and its value here.
        attacks: name and parameters of each attack at this value.
        since_half: against the largest earlier value that is at most half of this one; None without one.
    """

    total: EvalRow
    key: str
    value: float
    attacks: Sequence[Mapping[str, Any]]
    since_half: Change | None

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the row of the verdicts, then the fields that only a sweep has."""
        own = {
            "key": self.key,
            "value": self.value,
            "attacks": plain(self.attacks),
            "since_half": plain(self.since_half),
        }
        return {**self.total.to_json(), "kind": "sweep", **own}

    @classmethod
    def from_json(cls, row: Any) -> SweepRow:
        """The row again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("sweep",), cls._from_parts)

    @classmethod
    def _from_parts(cls, row: Mapping[str, Any]) -> SweepRow:
        return cls(
            total=from_fields(EvalRow, {**row, "kind": "worst"}),
            key=row["key"],
            value=row["value"],
            attacks=row["attacks"],
            since_half=Change.from_json(row["since_half"]),
        )
