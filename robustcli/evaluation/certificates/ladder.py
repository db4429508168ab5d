"""How far each image of a batch is proven, on a list of radii."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Proof(NamedTuple):
    """The least margin of an image, in logits, and what found it: > 0 proves, NaN and -inf do not."""

    margin: float
    method: str


#: (places of images, radius) -> what is found of each.
Prove = Callable[[Sequence[int], float], Sequence[Proof]]


@dataclass
class Rung:
    """What is known of one image.

    Args:
        proven: place of the largest proven radius in the list, -1 for none.
        margin: the least margin there, in logits.
        method: what proved it.
        stage: what proved the radius of the threat; "" while nothing did.
    """

    proven: int = -1
    margin: float = 0.0
    method: str = ""
    stage: str = ""


@dataclass
class Ladder:
    """The proven part of each image; a method climbs it by bisection.

    A radius that is proven proves the smaller ones. So each method begins where the one before it ended.

    Args:
        radii: ascending, in pixel units of [0, 1].
        threat: place of the radius of the threat in `radii`.
        size: number of images.
    """

    radii: Sequence[float]
    threat: int
    size: int
    rungs: list[Rung] = field(init=False)

    def __post_init__(self) -> None:
        self.rungs = [Rung() for _ in range(self.size)]

    def radius(self, image: int) -> float:
        """The largest proven radius, 0 for none."""
        proven = self.rungs[image].proven
        return 0.0 if proven < 0 else self.radii[proven]

    def verified(self, image: int) -> bool:
        """Whether the radius of the threat is proven."""
        return self.rungs[image].proven >= self.threat

    def open(self, images: Sequence[int]) -> list[int]:
        """Those of the images for which a larger radius was asked than is proven."""
        return [image for image in images if self.rungs[image].proven < len(self.radii) - 1]

    def climb(self, images: Sequence[int], prove: Prove) -> None:
        """Find the largest radius that can be proven, for each image: log2 of the list's length questions.

        Between two radii the middle one is decided. Images that ask for the same radius share a call.
        """
        ends = {image: len(self.radii) for image in images}
        while asked := self._asked(ends):
            for place, group in asked.items():
                proofs = prove(group, self.radii[place])
                for image, proof in zip(group, proofs, strict=True):
                    if proof.margin > 0:
                        self._raise(image, place, proof)
                    else:
                        ends[image] = place

    def _asked(self, ends: dict[int, int]) -> dict[int, list[int]]:
        """Place of a radius -> images that it must be decided for; ends: the first that was not proven."""
        asked: dict[int, list[int]] = {}
        for image, end in ends.items():
            low = self.rungs[image].proven
            if end - low > 1:
                asked.setdefault((low + end) // 2, []).append(image)
        return asked

    def _raise(self, image: int, place: int, proof: Proof) -> None:
        """Note that a radius is proven."""
        rung = self.rungs[image]
        rung.proven, rung.margin, rung.method = place, *proof
        if place >= self.threat and not rung.stage:
            rung.stage = proof.method


def place_of(radii: Sequence[float], eps: float) -> int:
    """Place of the threat's radius in the list. Raises ValueError for a list that cannot be climbed."""
    if any(not (math.isfinite(radius) and radius > 0) for radius in radii):
        raise ValueError(f"radii must be finite and > 0, got {list(radii)}")
    if list(radii) != sorted(set(radii)) or eps not in radii:
        raise ValueError(f"radii must ascend and hold that of the threat, {eps}, got {list(radii)}")
    return list(radii).index(eps)
