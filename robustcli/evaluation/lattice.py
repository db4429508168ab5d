"""Adversarial images as 8-bit files: pixels that are multiples of 1/255, still inside the ball."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.core.geometry import Ball, column

_ROUND = 1e-4  # in levels: float32 noise of k / 255


def to_lattice(x: Tensor, x_adv: Tensor, ball: Ball) -> Tensor:
    """round(255 x_adv), uint8 [B, C, H, W]: the nearest 8-bit image in the ball around x.

    linf: each level is clamped to those within [x - eps, x + eps]. Truncating would turn 8/255 into 9/255 or
    7/255. l2, l1: a row that rounding moved out of the ball is rounded towards x instead. When x itself is
    8-bit, this makes no pixel's step longer. When x is not 8-bit, the ball may hold no 8-bit image: the
    caller lets the judge measure the image again.

    Args:
        x, x_adv: pixels [B, C, H, W] in [0, 1].
        ball: the threat around x.
    """
    levels, origin = x_adv.double() * 255, x.double() * 255
    nearest = levels.round()
    if ball.norm == "linf":
        radius = ball.eps * 255
        low, high = (origin - radius - _ROUND).ceil(), (origin + radius + _ROUND).floor()
        nearest = torch.where(low <= high, torch.minimum(torch.maximum(nearest, low), high), nearest)
    else:
        inwards = torch.where(levels > origin, (levels + _ROUND).floor(), (levels - _ROUND).ceil())
        inside = ball.contains(x, from_lattice(nearest))
        nearest = torch.where(column(inside, x), nearest, inwards)
    return nearest.clamp_(0, 255).to(torch.uint8)


def nearest_levels(x_adv: Tensor) -> Tensor:
    """round(255 x_adv), uint8 [B, C, H, W]: the nearest 8-bit image, for threats without a ball."""
    return (x_adv.double() * 255).round().clamp_(0, 255).to(torch.uint8)


def from_lattice(levels: Tensor) -> Tensor:
    """levels / 255: uint8 -> float32 pixels in [0, 1]."""
    return levels.to(torch.float32).div_(255.0)
