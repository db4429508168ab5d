"""Fewer grey levels."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor, nn

from robustcli.defences.surrogate import straight
from robustcli.registry import defences


class BitDepth(nn.Module):
    """x -> round(x * (2^bits - 1)) / (2^bits - 1); the backward pass is that of the identity."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return straight(x, (x * self.levels).round() / self.levels)


@defences.register(
    "bit_depth",
    kind="purifier",
    random=False,
    differentiable=False,
    use="small changes that rounding takes away; it falls to an attack that knows it",
)
def bit_depth(*, bits: Annotated[int, Ge(1), Le(8)] = 4) -> nn.Module:
    """x' = round(x (2^b - 1)) / (2^b - 1),  b = bits.

    Source: Xu, Evans & Qi, NDSS 2018, arXiv:1704.01155.
    """
    return BitDepth(bits)
