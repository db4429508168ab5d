"""What the tables of the guard's verbs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone


def moment(time: float) -> str:
    """Seconds since 1970 as date and time of day, UTC."""
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def scores_in_words(scores: Mapping[str, float | None]) -> str:
    """`energy 2.31, jpeg -`."""
    return ", ".join(f"{name} {_number(score)}" for name, score in scores.items())


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4g}"
