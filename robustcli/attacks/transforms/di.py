"""Diverse inputs: the image smaller, at a random place on a black ground."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.core.blocks import Line, sampled
from robustcli.core.random import RowRandom
from robustcli.registry import transforms

_GROUND = 1.1  # side of the ground in sides of the image; the paper: 330 / 299
_CHANCE = 0.5  # that an image is changed


@transforms.register("di", use="a cheap one, which costs no pass", random=True)
def di(x: Tensor, rng: RowRandom, copy: int) -> Tensor:
    """seen = resize(pad(resize(x))): with probability 1/2 the image covers 1/1.1 to 1 of its side; else x.

    The size and the place on a ground of zeros are drawn for each row. Both resizes of the paper are one
    bilinear reading. As in the authors' later code the answer has the size of x.

    Args:
        x: pixels [R, C, H, W] in [0, 1].
        rng: one stream per row.
        copy: not read.

    Source: Xie et al., CVPR 2019, arXiv:1803.06978.
    """
    height, width = x.shape[2:]
    drawn = rng.uniform((4,))
    share = 1 / (1 + (_GROUND - 1) * drawn[:, 0])  # of the side
    share = torch.where(drawn[:, 3] < _CHANCE, share, 1.0)
    lines = []
    for axis, length in ((1, height), (2, width)):
        places = torch.arange(length, device=x.device).float() + 0.5
        start = (1 - share) * length * drawn[:, axis]
        line = (places - start[:, None]) / share[:, None] - 0.5
        shape = (-1, length, 1) if axis == 1 else (-1, 1, length)
        lines.append(Line(line.reshape(shape).expand(-1, height, width), 0, length))
    return sampled(x, *lines)
