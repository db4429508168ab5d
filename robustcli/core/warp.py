"""Turning, growing and shifting images, one pose per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def warp(x: Tensor, angle: Tensor, right: Tensor, down: Tensor, grow: Tensor | None = None) -> Tensor:
    """x'[T(p)] = x[p] with T(p) = grow * R(angle) p + (right, down), p measured from the centre of the image; zeros come in from outside.

    Args:
        x: [B, C, H, W].
        angle: radians [B], clockwise. right, down: shares [B] of the width and of the height.
        grow: factors [B] > 0, above 1 enlarges; None = 1.

    Returns:
        [B, C, H, W], bilinear between pixels. Bits may differ between devices.

    Source: the sampling grid of Jaderberg et al., NeurIPS 2015, arXiv:1506.02025.
    """
    height, width = x.shape[2:]
    cos, sin = angle.cos(), angle.sin()
    if grow is not None:
        cos, sin = cos / grow, sin / grow
    # The sampling map, output place -> input place in units of half a side, is the inverse: shift back, then turn back.
    right, down = -2 * right, -2 * down
    across, along = height / width, width / height
    rows = (
        cos,
        sin * across,
        cos * right + sin * across * down,
        -sin * along,
        cos,
        -sin * along * right + cos * down,
    )
    theta = torch.stack(rows, 1).reshape(-1, 2, 3).to(x.dtype)
    return functional.grid_sample(
        x,
        functional.affine_grid(theta, list(x.shape), align_corners=False),
        padding_mode="zeros",
        align_corners=False,
    )
