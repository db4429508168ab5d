"""A smaller image at a random place."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from robustcli.registry import defences


class RandomResizePad(nn.Module):
    """Shrink to a random size of at least `least` of each side, then fill up with zeros around it."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        small = int(torch.randint(max(1, round(self.least * height)), height + 1, ()))
        narrow = max(1, round(width * small / height))
        rows, columns = height - small, width - narrow
        top, left = int(torch.randint(rows + 1, ())), int(torch.randint(columns + 1, ()))
        resized = x
        if small < height:
            resized = interpolate(x, (small, narrow), mode="bilinear", align_corners=False).clamp(0, 1)
        return pad(resized, (left, columns - left, top, rows - top))


@defences.register(
    "random_resize_pad",
    kind="purifier",
    random=True,
    differentiable=True,
    use="attacks that do not average over draws; it falls to one that does",
)
def random_resize_pad(*, least: Annotated[float, Gt(0), Le(1)] = 0.8) -> nn.Module:
    """x' = zeros around x resized to h x hW/H,  h uniform in round(least H) to H, at a random place.

    One draw for each pass, as published: all images of a batch get the same size and place. The paper
    enlarges 299 pixels to at most 331, which its network takes. Here a network keeps its own size, so that
    images are made smaller, bilinearly. Draws come from torch's generator on the CPU.

    Source: Xie et al., ICLR 2018, arXiv:1711.01991.
    """
    return RandomResizePad(least)
