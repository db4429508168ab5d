"""Images cut into blocks of random sizes, each image in its own way, and what stands in the blocks moved."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustcli.core.random import RowRandom


def cuts(rng: RowRandom, parts: int, length: int, tail: tuple[int, ...] = ()) -> Tensor:
    """Where `length` pixels are cut into `parts` strips: int64 [B, *tail, parts + 1], from 0 to `length`.

    The lengths stand to each other as uniform numbers do, so that a strip may be empty.
    """
    share = rng.uniform((*tail, parts)).double().add_(2.0**-24).cumsum(-1)
    inner = (share / share[..., -1:] * length).round_().long()
    return torch.cat((torch.zeros_like(inner[..., :1]), inner), -1)


class Strips(NamedTuple):
    """Shuffled strips along one axis. For each place of the answer, int64 [..., length]:

    number: of the strip of the source that stands there. start, size: where it begins in the source, and how
    long it is. place: which place of the source comes here.
    """

    number: Tensor
    start: Tensor
    size: Tensor
    place: Tensor


def shuffled(rng: RowRandom, parts: int, length: int, tail: tuple[int, ...] = ()) -> Strips:
    """`length` pixels cut into strips that stand in another order; each field is [B, *tail, length]."""
    bounds = cuts(rng, parts, length, tail)
    order = rng.uniform((*tail, parts)).argsort(dim=-1, stable=True)
    sizes = bounds.diff(dim=-1)
    ends = sizes.gather(-1, order).cumsum(-1)
    places = torch.arange(length, device=ends.device).expand(*ends.shape[:-1], length)
    at = torch.searchsorted(ends, places.contiguous(), right=True)
    number = order.gather(-1, at)
    size = sizes.gather(-1, number)
    start = bounds.gather(-1, number)
    return Strips(number, start, size, start + places - (ends.gather(-1, at) - size))


def shuffled_and_turned(x: Tensor, rng: RowRandom, parts: int, angle: float) -> Tensor:
    """`parts` x `parts` blocks of random sizes, in another order, each turned about its centre: [B, C, H, W].

    Strips along one axis change places. Then each is cut along the other axis, and its blocks change places.
    Which axis comes first is drawn for each image. A turned block is bilinear between its pixels, and 0 where
    none of them is.

    Args:
        x: pixels [B, C, H, W]; the answer is differentiable in them.
        rng: one stream per image.
        parts: blocks along each axis, >= 1.
        angle: the largest turn, degrees; it is drawn uniformly for each block, both ways.
    """
    height, width = x.shape[2:]
    rows_first = _layout(rng, parts, angle, height, width)
    columns_first = _layout(rng, parts, angle, width, height).transpose(2, 3)[[3, 4, 5, 0, 1, 2, 6]]
    down, tall, row, right, wide, column, turn = torch.where(
        rng.integers(0, 2).bool()[:, None, None], columns_first, rows_first
    )
    middle, centre = down + (tall - 1) / 2, right + (wide - 1) / 2
    row, column = row - middle, column - centre
    cos, sin = turn.cos(), turn.sin()
    rows = Line(middle + cos * row - sin * column, down, down + tall)
    columns = Line(centre + sin * row + cos * column, right, right + wide)
    return sampled(x, rows, columns)


def _layout(rng: RowRandom, parts: int, angle: float, first: int, second: int) -> Tensor:
    """Where each place of the answer comes from, float32 [7, B, first, second].

    Start, size and place along the first axis, the same along the second one, and the turn in radians.
    """
    outer = shuffled(rng, parts, first)
    inner = shuffled(rng, parts, second, (parts,))  # of each strip
    turns = rng.uniform((parts, parts)).mul_(2).sub_(1).mul_(math.radians(angle))
    strip = outer.number[:, :, None].expand(-1, -1, second)
    along = [part[:, :, None].expand(-1, -1, second).float() for part in outer[1:]]
    across = [part.gather(1, strip).float() for part in inner[1:]]
    block = outer.number[:, :, None] * parts + inner.number.gather(1, strip)
    turn = turns.flatten(1).gather(1, block.flatten(1)).view(block.shape)
    return torch.stack((*along, *across, turn))


class Line(NamedTuple):
    """Where to read along one axis, [B, H, W]: the place, and the first and the end of what may be read."""

    place: Tensor
    first: Tensor | float
    end: Tensor | float


def sampled(x: Tensor, rows: Line, columns: Line) -> Tensor:
    """x read between its pixels, bilinear, [B, C, H, W]; what may not be read is 0.

    Its gradient in x is a sum over the readers of each pixel, which PyTorch can make deterministic on CUDA.
    """
    height, width = x.shape[2:]
    flat, total = x.flatten(2), torch.zeros_like(x)
    for down in (0, 1):
        row = rows.place.floor() + down
        near = (1 - (rows.place - row).abs()) * ((row >= rows.first) & (row < rows.end))
        for right in (0, 1):
            column = columns.place.floor() + right
            weight = near * (1 - (columns.place - column).abs())
            weight = weight * ((column >= columns.first) & (column < columns.end))
            at = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = at.long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
            total = total + weight[:, None].to(x.dtype) * flat.gather(2, index).view(x.shape)
    return total
