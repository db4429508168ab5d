"""Turning, enlarging and shifting images, one pose per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def warp(x: Tensor, angle: Tensor, right: Tensor, down: Tensor, grow: Tensor | None = None) -> Tensor:
    """x'[T(p)] = x[p] with T(p) = grow * R(angle) p + (right, down).

    p is a place, measured from the centre of the image: it is enlarged, then turned, then shifted. Places
    outside the image hold 0.

    Args:
        x: pixels [B, C, H, W], any range.
        angle: [B], radians, clockwise.
        right: [B], the shift to the right as a share of the width; < 0 is to the left.
        down: [B], the shift down as a share of the height; < 0 is up.
        grow: [B], a factor > 0, above 1 enlarges; None means 1.

    Returns:
        x' [B, C, H, W], bilinear between pixels. Bits may differ between devices.

    Source: the sampling grid of Jaderberg et al., NeurIPS 2015, arXiv:1506.02025.
    """
    height, width = x.shape[2:]
    cos, sin = angle.cos(), angle.sin()
    if grow is not None:
        cos, sin = cos / grow, sin / grow
    # The sampling map leads from output to input, in units of half a side: shift back, then turn back.
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
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
