"""The l0 ball: a few pixels may take any value of the box, all others stay. A pixel is a position.

All channels of a position count once: a colour image of 32 x 32 has 1,024 pixels, not 3,072.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcli.core.random import RowRandom


def changed(x: Tensor, z: Tensor) -> Tensor:
    """How many pixels of z differ from x in any channel: int64 [B], from two [B, C, H, W]; no tolerance."""
    return (x != z).flatten(2).any(1).sum(1)


def keep_largest(x: Tensor, z: Tensor, count: int, low: float, high: float) -> Tensor:
    """argmin_p ||p - z||_2  with at most `count` pixels of p other than those of x, p in the box; exact.

    A pixel that may move goes to its clipped value, which lies m from x in each channel, where z lies s from
    x. It brings p nearer to z by sum_c s^2 - (s - m)^2 = sum_c m (2 s - m). The `count` largest are taken. Of
    a z far outside the box these are nearly those of the largest sum_c s m.

    Args:
        x: clean pixels [B, C, H, W] in the box; z: any pixels [B, C, H, W].
        count: pixels, >= 0.
        low, high: the box.

    Source: Croce & Hein, ICCV 2019, arXiv:1909.05040, section 4.1.
    """
    boxed = z.clamp(low, high)
    if count >= math.prod(x.shape[2:]):
        return boxed
    near, far = (boxed - x).abs(), (z - x).abs()
    gain = (near * (2 * far - near)).flatten(2).sum(1)
    taken = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, gain.topk(count, dim=1).indices, True)
    return torch.where(taken.reshape(-1, 1, *x.shape[2:]), boxed, x)


def random_pixels(x: Tensor, count: int, low: float, high: float, rng: RowRandom) -> Tensor:
    """`count` pixels of x [B, C, H, W], chosen with equal chance, take values uniform in the box."""
    order = rng.uniform((math.prod(x.shape[2:]),))
    taken = torch.zeros_like(order, dtype=torch.bool)
    taken.scatter_(1, order.topk(min(count, order.shape[1]), dim=1).indices, True)
    values = rng.uniform(tuple(x.shape[1:])).mul_(high - low).add_(low)
    return torch.where(taken.reshape(-1, 1, *x.shape[2:]), values.to(x.dtype), x)
