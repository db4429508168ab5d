"""The images that a bound speaks of, and the least value of a linear function over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.core.bounds.op import FINE, Box, gamma, largest
from robustcli.core.bounds.rows import Rows
from robustcli.core.geometry import Ball


@dataclass(frozen=True)
class Region:
    """A box, and within it under l2 and l1 the ball of radius `eps` around x.

    x: [B, *shape], None for a box alone. sound: whether `least` provides for its own rounding.
    """

    lower: Tensor
    upper: Tensor
    sound: bool
    x: Tensor | None = None
    norm: str = "linf"
    eps: float = 0.0

    @property
    def box(self) -> Box:
        """(lower, upper), each [B, *shape]."""
        return self.lower, self.upper

    def least(self, a: Tensor, pick: Rows) -> Tensor:
        """A lower bound of a . z over all z of the region, [Q]; exact for a box.

        Box: a . c - |a| . r, with centre c and radius r. Ball: a . x - eps ||a||_q, q the dual norm, 2 or
        infinity. Both hold under l2 and l1, and the larger one is taken.
        """
        size = a.abs()
        least = pick.dot(a, (self.lower + self.upper) / 2)
        least = least - pick.dot(size, (self.upper - self.lower) / 2)
        loss = gamma(2 * math.prod(a.shape[1:]) + 16, FINE)
        if self.sound:
            least = least - loss * pick.dot(size, largest(self.box))
        if self.x is None or self.norm == "linf":
            return least
        dual = size.flatten(1).amax(1) if self.norm == "l1" else torch.linalg.vector_norm(a.flatten(1), dim=1)
        ball = pick.dot(a, self.x) - self.eps * dual
        if self.sound:
            ball = ball - loss * (pick.dot(size, self.x.abs()) + self.eps * dual)
        return torch.maximum(least, ball)


def region(x: Tensor, ball: Ball, *, sound: bool) -> Region:
    """The ball around pixels x [B, *shape], cut by its pixel box; float64.

    sound: as wide as the judge of attacks sees it. It takes a point of float32 pixels whose distance exceeds
    eps by a millionth of eps and the rounding of each pixel (`Ball.contains`), so that many are included.
    """
    x, eps = x.double(), ball.eps
    if sound:
        pixels = math.prod(x.shape[1:])
        share = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[ball.norm]
        eps = (eps * (1 + 1e-6) + 2.0**-24 * max(abs(ball.low), abs(ball.high)) * share) * (1 + 2.0**-40)
    lower, upper = (x - eps).clamp(ball.low, ball.high), (x + eps).clamp(ball.low, ball.high)
    return Region(lower, upper, sound, x, ball.norm, eps)
