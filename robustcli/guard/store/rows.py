"""What goes into the evidence store and comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robustcli.errors import UsageError

Kind = Literal["adversarial", "clean", "unusable"]
_ADVERSARIAL, _CLEAN, _UNUSABLE = "adversarial", "clean", "unusable"


@dataclass(frozen=True)
class Seen:
    """One image that a guarded model has answered.

    Args:
        accepted: whether no detector raised an alarm.
        label: the class that the model named, 0 to K - 1.
        confidence: its probability.
        scores: of each detector.
        image: PNG bytes of an alarm that is to be kept; None keeps no image.
        time: seconds since 1970; None is now.
    """

    accepted: bool
    label: int
    confidence: float
    scores: Mapping[str, float]
    image: bytes | None = None
    time: float | None = None


@dataclass(frozen=True)
class Review:
    """What a person found in an image: an attack, a clean image, or nothing that one could learn from.

    Args:
        kind: "adversarial" is an attack, and `label` its true class; "clean" is a false alarm, and `label`
            its class where the reviewer gave one; "unusable" has no class.
        label: the true class, 0 to K - 1.
    """

    kind: Kind
    label: int | None = None

    @classmethod
    def parse(cls, text: str) -> Review:
        """`3` (an attack on an image of class 3), `clean`, `clean:3` or `unusable`. Raises UsageError."""
        word, _, label = text.strip().partition(":")
        if text.strip() == _UNUSABLE:
            return cls("unusable")
        if word == _CLEAN and (text.strip() == _CLEAN or _is_class(label)):
            return cls("clean", int(label) if label else None)
        if _is_class(text.strip()):
            return cls("adversarial", int(text))
        raise UsageError(
            f"{text!r} is no label",
            hint="a class such as 3 (an attack on a 3), clean, clean:3 (a false alarm), or unusable",
        )

    def __str__(self) -> str:
        """As `parse` reads it, and as the store has it."""
        if self.kind == _ADVERSARIAL:
            return str(self.label)
        return self.kind if self.label is None else f"{self.kind}:{self.label}"


def _is_class(text: str) -> bool:
    return text.isascii() and text.isdigit()


@dataclass(frozen=True)
class Evidence:
    """One quarantined image, without its pixels.

    Args:
        hash: SHA-256 of its PNG bytes, in hexadecimal.
        time, last: when it came first and last, in seconds since 1970.
        seen: how often it came.
        model: SHA-256 of the model that raised the alarm.
        label, confidence, scores: as that model answered.
        review: what a person found; None before that.
        reviewed: when, in seconds since 1970.
    """

    hash: str
    time: float
    last: float
    seen: int
    model: str
    label: int
    confidence: float
    scores: dict[str, float | None]
    review: Review | None
    reviewed: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        review = None if self.review is None else str(self.review)
        return {**vars(self), "review": review}


@dataclass(frozen=True)
class Observation:
    """What is kept of each answer, alarm or not."""

    time: float
    accepted: bool
    scores: dict[str, float | None]
    model: str


@dataclass(frozen=True)
class Limits:
    """What a store may hold. What goes is counted, and noted in the log.

    Args:
        bytes: of all images together, > 0. Beyond it the oldest images go, those without a review first,
            until a tenth is free.
        days: > 0. Images that came last so long ago go, with a review or without.
        observations: > 0. Beyond a tenth more of them, the oldest go.
    """

    bytes: int = 1_024_000_000
    days: float = 90.0
    observations: int = 1_000_000

    def __post_init__(self) -> None:
        if not (self.bytes > 0 and self.days > 0 and self.observations > 0):
            raise ValueError(f"the limits of a store are above 0, got {self}")


@dataclass(frozen=True)
class Entry:
    """One entry of the log: `hash` is SHA-256 over the canonical JSON of [seq, time, kind, body, prev]."""

    seq: int
    time: float
    kind: str
    body: dict[str, Any]
    prev: str
    hash: str


def finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as JSON can hold them: NaN and Inf become None."""
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}
