"""What was proven of one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: The class of an image to which a smoothed classifier gives none.
ABSTAIN: Final = -1
Status = Literal["verified", "falsified", "unknown", "abstain"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was proven of one image.

    Args:
        label: class that the certified classifier gives to the clean image, or `ABSTAIN`.
        radius: the class stays `label` for every change shorter than this, in pixel units of [0, 1] and the
            norm of the threat; 0 where nothing is proven.
        status: about the radius of the threat and the true class: "verified", it stands; "falsified", the
            clean image or a point that was found is of another class; "unknown"; "abstain".
        stage: what gave the answer: "clean", "smoothing", "ibp", "crown", "attack" and so on.
        seconds: wall time.
        found: class at the point that an attack found; None without one.
        evidence: what a stranger needs to look at it again: counts of a sample, a margin in logits.
    """

    label: int
    radius: float
    status: Status
    stage: str
    seconds: float
    found: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
