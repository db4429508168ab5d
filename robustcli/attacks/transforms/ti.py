"""Translation invariance: a gradient that those of the shifted image agree on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcli.core.random import RowRandom
from robustcli.registry import transforms

_SHARE = 15 / 299  # of the side: the kernel of the paper on its images
_SIGMAS = 3.0  # from the middle of the kernel to its end


@transforms.register("ti", use="targets that are robust or look elsewhere", still=True)
def ti(x: Tensor, rng: RowRandom, copy: int) -> Tensor:
    """seen = x, grad = G * grad: the gradient is smoothed by a Gaussian, as if the image had been shifted.

    The kernel of the paper has 15 of 299 pixels; ours has the same share of the longer side, and at least 3
    pixels. Three standard deviations reach from its middle to its end.

    Args:
        x: pixels [R, C, H, W] in [0, 1].
        rng, copy: not read.

    Source: Dong et al., CVPR 2019, arXiv:1904.02884.
    """
    seen: Tensor = _Smooth.apply(x)
    return seen


class _Smooth(torch.autograd.Function):
    """Forward: x. Backward: the gradient smoothed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return smoothed(grads[0])


def smoothed(grad: Tensor) -> Tensor:
    """G * grad per channel, [R, C, H, W]; what lies outside counts as 0."""
    half = max(1, round(_SHARE * max(grad.shape[2:]) / 2 - 0.5))
    places = torch.arange(-half, half + 1, device=grad.device, dtype=grad.dtype) * (_SIGMAS / half)
    weights = (-places.square() / 2).exp()
    weights = weights / weights.sum()
    flat = grad.flatten(0, 1)[:, None]
    flat = functional.conv2d(flat, weights[None, None, :, None], padding=(half, 0))
    return functional.conv2d(flat, weights[None, None, None], padding=(0, half)).view(grad.shape)
