"""The middle of each neighbourhood."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from robustcli.registry import defences


class Median(nn.Module):
    """Median of size x size pixels of each channel; an even window takes the upper of the two middle ones.

    The image is mirrored at its border, as `scipy.ndimage.median_filter` does, whose answers these are.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_mirrored(length, self.size, x.device) for length in x.shape[2:])
        wide = x[:, :, rows][..., columns]
        windows = wide.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4)
        return windows.kthvalue(self.size**2 // 2 + 1).values


def _mirrored(length: int, size: int, device: torch.device) -> Tensor:
    """Indices c b a | a b c d | d c b of a line with size // 2 pixels before it and size - 1 in all."""
    at = torch.arange(-(size // 2), length + (size - 1) // 2, device=device) % (2 * length)
    return torch.minimum(at, 2 * length - 1 - at)


@defences.register(
    "median",
    kind="purifier",
    random=False,
    differentiable=True,
    use="single changed pixels; smooth changes pass it",
)
def median(*, size: Annotated[int, Ge(2), Le(15)] = 3) -> nn.Module:
    """x'[c, i, j] = median of the size x size pixels around x[c, i, j].

    An even window takes the upper of the two middle pixels, and reaches one further up and left. Its gradient
    is 1 for the pixel that is the median.

    Source: Xu, Evans & Qi, NDSS 2018, arXiv:1704.01155.
    """
    return Median(size)
