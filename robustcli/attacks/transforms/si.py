"""Scale invariance: copies of the image that are ever darker."""

from __future__ import annotations

from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.registry import transforms


@transforms.register("si", use="together with others", copies=5)
def si(x: Tensor, rng: RowRandom, copy: int) -> Tensor:
    """seen_k = x / 2^k, k = 0 .. 4: networks answer alike for darker images, with other gradients.

    Args:
        x: pixels [R, C, H, W] in [0, 1].
        rng: not read.
        copy: k.

    Source: Lin et al., ICLR 2020, arXiv:1908.06281.
    """
    return x / float(2**copy)
