"""Steps of attacks as values: pure functions of tensors that compare equal where they do the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.core.geometry import Ball


@dataclass(frozen=True)
class Ascend:
    """x_adv -> P(x_adv + size * steepest(grad)), P the projection on `ball` around x.

    Args:
        ball: projects, and knows the steepest direction.
        size: pixel units, > 0.
        clip: as in `Ball.project`.
    """

    ball: Ball
    size: float
    clip: bool = True

    def __call__(self, x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        """The next point; all are [R, C, H, W]."""
        return self.ball.project(x, x_adv + self.size * self.ball.steepest(grad, x_adv), clip=self.clip)


def unit_mean(grad: Tensor) -> Tensor:
    """g / mean|g| per row [B, C, H, W], as momentum adds it up; a row of zeros stays."""
    size = grad.abs().mean((1, 2, 3), keepdim=True)
    return grad / torch.where(size > 0, size, 1.0)
