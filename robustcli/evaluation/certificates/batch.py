"""Images on their way through the stages of a proof by bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from robustcli.certificates.answer import Answer, Status
from robustcli.evaluation.certificates.document import LOOSER, METHOD
from robustcli.evaluation.certificates.ladder import Ladder

#: Stages besides the methods.
CLEAN: Final = "clean"
ATTACK: Final = "attack"
BUDGET: Final = "budget"
UNKNOWN: Final = "unknown"
_DIGITS = 8  # of a margin in a record: batches of other sizes move it by less


class Batch:
    """B images at work.

    Args:
        x, y, ids: pixels [B, C, H, W] in [0, 1], labels and sample ids int64 [B].
        ladder: what is proven.
        budget: seconds per image, or None.
    """

    def __init__(self, x: Tensor, y: Tensor, ids: Tensor, ladder: Ladder, budget: float | None) -> None:
        self.x, self.y, self.ids, self.ladder, self._budget = x, y, ids, ladder, budget
        self.label: list[int] = []
        self.seconds = [0.0] * len(x)
        self.found: dict[int, int] = {}
        #: Images that met backward bounds: whether one of these was looser than a box.
        self.looser: dict[int, bool] = {}
        self._missed: set[int] = set()

    def with_budget(self, images: Sequence[int], cost: float) -> list[int]:
        """Those of the images that have so many seconds left; that the others miss a stage is noted."""
        if self._budget is None:
            return list(images)
        left = {i: self._budget - self.seconds[i] for i in images}
        self._missed.update(i for i in images if left[i] <= 0 or left[i] < cost)
        return [i for i in images if left[i] > 0 and left[i] >= cost]

    def compared(self, images: Sequence[int], looser: set[int]) -> None:
        """Note which of the images had a backward bound that was looser than a box."""
        self.looser.update({i: i in looser or self.looser.get(i, False) for i in images})

    def answer(self, i: int) -> Answer:
        """What is known of one image."""
        status, stage = self._verdict(i)
        rung = self.ladder.rungs[i]
        evidence: dict[str, Any] = {LOOSER: self.looser[i]} if i in self.looser else {}
        if rung.proven >= 0:
            evidence |= {METHOD: rung.method, "margin": float(f"{rung.margin:.{_DIGITS}g}")}
        return Answer(
            label=self.label[i],
            radius=self.ladder.radius(i),
            status=status,
            stage=stage,
            seconds=self.seconds[i],
            found=self.found.get(i),
            evidence=evidence,
        )

    def _verdict(self, i: int) -> tuple[Status, str]:
        """About the radius of the threat: (status, the stage that gave it)."""
        if self.label[i] != int(self.y[i]):
            return "falsified", CLEAN
        if self.ladder.verified(i):
            return "verified", self.ladder.rungs[i].stage
        if i in self.found:
            return "falsified", ATTACK
        return "unknown", BUDGET if i in self._missed else UNKNOWN
