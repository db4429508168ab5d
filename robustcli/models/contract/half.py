"""Gradients through networks in half precision, whose smallest number is 6e-8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Scale:
    """What the gradient of each row is multiplied by at the logits, and divided by at the images.

    Without it the gradient of cross-entropy is 0 wherever the true class leads by more than 16: the search
    would be blind there, and in float32 it is not. The rows of a network in eval mode do not depend on each
    other, so each has a factor of its own: 1 / max |g| over its logits, which brings g to the size 1.
    """

    def __init__(self) -> None:
        self.factor = torch.ones(())

    def images(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x [B, C, H, W] in the type of the weights."""
        cast: Tensor = _Cast.apply(x, dtype, self, False)
        return cast

    def logits(self, z: Tensor) -> Tensor:
        """Logits [B, K] in float32."""
        cast: Tensor = _Cast.apply(z, torch.float32, self, True)
        return cast


class _Cast(torch.autograd.Function):
    """A cast; backward it finds and applies the factor at the logits, and takes it out at the images."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype, scale: Scale, at_logits: bool) -> Tensor:
        ctx.dtype, ctx.scale, ctx.at_logits = value.dtype, scale, at_logits
        return value.to(dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0].float()
        if ctx.at_logits:
            largest = grad.flatten(1).abs().amax(1)
            ctx.scale.factor = torch.where(largest > 0, 1 / largest, 1.0).nan_to_num(1.0, 1.0, 1.0)
        factor = ctx.scale.factor.view(-1, *[1] * (grad.dim() - 1))
        if ctx.at_logits:
            return (grad * factor).to(ctx.dtype), None, None, None
        return (grad / factor).to(ctx.dtype), None, None, None
