"""One warning about a measured number, and what all warnings together say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Level = Literal["note", "suspect", "invalid"]
_DOUBTS: tuple[Literal["invalid", "suspect"], ...] = ("invalid", "suspect")  # the worst first


@dataclass(frozen=True)
class Alarm:
    """One warning, explained in docs/alarms.md.

    Args:
        name: stable; programs may ask for it.
        level: how bad it is. A "note" leaves the number as it is.
        evidence: what was measured.
        remedy: what to do about it.

    Raises ValueError for another level.
    """

    name: str
    level: Level
    evidence: str
    remedy: str

    def __post_init__(self) -> None:
        if self.level not in ("note", *_DOUBTS):
            raise ValueError(f"level {self.level!r} is not one of note, suspect, invalid")

    def line(self) -> str:
        """``suspect: not-converged: evidence; remedy``, for the console."""
        return f"{self.level}: {self.name}: {self.evidence}; {self.remedy}"

    def to_json(self) -> dict[str, str]:
        """One JSON object: the four fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, alarm: Mapping[str, Any]) -> Alarm:
        """The alarm again, without keys of a newer version. Raises TypeError for a missing one."""
        return cls(**{field.name: alarm[field.name] for field in fields(cls) if field.name in alarm})


def reliability(alarms: Sequence[Alarm]) -> Literal["ok", "suspect", "invalid"]:
    """The worst level of all alarms; notes do not count."""
    levels = {alarm.level for alarm in alarms}
    for doubt in _DOUBTS:
        if doubt in levels:
            return doubt
    return "ok"
