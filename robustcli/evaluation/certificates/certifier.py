"""What every method of proof is called with, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from robustcli.certificates.answer import Answer
from robustcli.core.geometry import Ball


class Certifier(Protocol):
    """A method that proves how far an image may change without another class.

    Attributes:
        name: of the method, as records and tables write it.
        norm: of the radii that it proves.
    """

    @property
    def name(self) -> str:
        """smoothing, ibp, crown, cascade and so on."""

    @property
    def norm(self) -> str:
        """linf, l2 or l1."""

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor) -> Sequence[Answer]:
        """One answer for each image, in order.

        No answer depends on the other images of a batch, or on their order.

        Args:
            x: pixels float32 [B, C, H, W] in [0, 1].
            y: labels int64 [B].
            ids: int64 [B], index of each sample in the stored split: the key of its random draws.

        `Answer.radius` is in pixel units of [0, 1]. A method that proves given radii alone answers with the
        largest of them that it proved. `Answer.status` is about the radius of the threat.
        """

    def forecast(self, batch: int) -> int:
        """Bytes of memory that a batch of so many images takes at the most, beside the weights."""


def radii_of(ball: Ball, radii: Sequence[float] | None) -> tuple[float, ...]:
    """The radii that are asked for, ascending, with that of the threat among them.

    None means quarters of the threat's radius: eps/4, eps/2, 3 eps/4 and eps.
    """
    asked = [ball.eps * k / 4 for k in range(1, 4)] if radii is None else radii
    return tuple(sorted({*map(float, asked), float(ball.eps)}))
