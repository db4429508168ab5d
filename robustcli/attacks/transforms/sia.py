"""Structure invariance: each block of the image is changed in a way of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.core.blocks import cuts
from robustcli.core.random import RowRandom
from robustcli.registry import transforms

_PARTS = 3  # blocks along each axis
_NOISE = 16 / 255  # largest, in pixel units
_WAYS = 7


@transforms.register("sia", use="a strong one, for targets of any kind", copies=20, random=True)
def sia(x: Tensor, rng: RowRandom, copy: int) -> Tensor:
    """seen_k: 3 x 3 blocks of random sizes, each with one of 7 changes at random, k = 1 .. 20.

    Rolled down, rolled to the right, flipped top to bottom, flipped left to right, turned by 180 degrees,
    scaled by a random number below 1, or with uniform noise of up to 16/255, cut by the pixel box. These are
    the changes of the authors' public code; the paper has three more.

    Args:
        x: pixels [R, C, H, W] in [0, 1].
        rng: one stream per row.
        copy: not read.

    Source: Wang et al., ICCV 2023, arXiv:2309.14700.
    """
    height, width = x.shape[2:]
    down, right = cuts(rng, _PARTS, height), cuts(rng, _PARTS, width)
    up_to = (torch.arange(height, device=x.device), torch.arange(width, device=x.device))
    row_part, column_part = (
        torch.searchsorted(bounds[:, 1:].contiguous(), places.expand(len(x), -1).contiguous(), right=True)
        for bounds, places in zip((down, right), up_to, strict=True)
    )
    block = row_part[:, :, None] * _PARTS + column_part[:, None, :]

    def of_block(values: Tensor) -> Tensor:
        return values.gather(1, block.flatten(1)).view(block.shape)

    way = of_block(rng.integers(0, _WAYS, (_PARTS**2,)))
    draw = of_block(rng.uniform((_PARTS**2,)))
    noise = rng.uniform(tuple(x.shape[1:])).mul_(2).sub_(1).mul_(_NOISE)
    row = _moved(row_part, down, draw, way == 0, (way == 2) | (way == 4), 1)
    column = _moved(column_part, right, draw, way == 1, (way == 3) | (way == 4), 2)
    index = (row * width + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    seen = x.flatten(2).gather(2, index).view(x.shape)
    seen = seen * torch.where(way == 5, draw, 1.0)[:, None]
    return torch.where((way == 6)[:, None], (seen + noise).clamp(0, 1), seen)


def _moved(part: Tensor, bounds: Tensor, draw: Tensor, roll: Tensor, flip: Tensor, axis: int) -> Tensor:
    """int64 [R, H, W]: from where along an axis each place is read."""
    length = part.shape[1]
    start = bounds.gather(1, part)
    size = bounds.gather(1, part + 1) - start
    shape = (-1, length, 1) if axis == 1 else (-1, 1, length)
    start, size = start.view(shape), size.view(shape)
    offset = torch.arange(length, device=part.device).view(shape) - start
    rolled = (offset - (draw * size).long()) % size
    offset = torch.where(roll, rolled, torch.where(flip, size - 1 - offset, offset))
    return start + offset
