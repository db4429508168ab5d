"""A convolution by tiles whose derivative for its input goes by tiles, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustcli.core.tiled import TiledConv, worth_tiles


def worth_slopes(conv: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether tiles pay for a module on inputs [B, C, H, W] and for the way back, see `worth_tiles`."""
    if not worth_tiles(conv, shape):
        return False
    assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
    if any(p > taps - 1 for p, taps in zip(conv.padding, conv.kernel_size, strict=True)):
        return False
    return worth_tiles(_way_back(conv), _result(conv, shape))


class TiledSlope(nn.Module):
    """conv(x) for fp32 inputs x [B, C, H, W] of one H and W, with a first derivative for x alone.

    Inputs of another size go the plain way.

    Args:
        conv: a layer that is `worth_slopes`. shape: of its inputs.
    """

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._plain, self._shape = conv, tuple(shape[1:])
        self.there = TiledConv(conv, shape, relu=False, pool=False)
        self.back = TiledConv(_way_back(conv), _result(conv, shape), relu=False, pool=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, K, H', W']."""
        if tuple(x.shape[1:]) != self._shape or x.dtype is not torch.float32:
            plain: Tensor = self._plain(x)
            return plain
        tiled: Tensor = _Tiled.apply(x, self)
        return tiled.permute(0, 3, 1, 2)  # out here: what follows may write into it


class _Tiled(torch.autograd.Function):
    """x, layer -> layer.there(x) as [B, H', W', K]; its derivative is layer.back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: TiledSlope) -> Tensor:
        ctx.layer = layer
        return layer.there.channels_last(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.back(grad.permute(0, 3, 1, 2)), None


def _result(conv: nn.Conv2d, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of conv(x) for x of `shape`, at stride 1."""
    assert not isinstance(conv.padding, str)
    sides = zip(shape[2:], conv.padding, conv.kernel_size, strict=True)
    return shape[0], conv.out_channels, *(n + 2 * p - taps + 1 for n, p, taps in sides)


def _way_back(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution that takes a gradient for conv(x) to one for x."""
    assert not isinstance(conv.padding, str)
    padding = [taps - 1 - p for taps, p in zip(conv.kernel_size, conv.padding, strict=True)]
    weight = conv.weight.detach().flip(2, 3).transpose(0, 1)
    back = nn.utils.skip_init(
        nn.Conv2d, conv.out_channels, conv.in_channels, conv.kernel_size, padding=padding, bias=False
    )
    back.weight = nn.Parameter(weight, requires_grad=False)
    assert isinstance(back, nn.Conv2d)
    return back
