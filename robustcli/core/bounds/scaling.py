"""y = s x + t with constants s and t: BatchNorm, arithmetic with tensors of the network, dropout."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.bounds.moving import Move
from robustcli.core.bounds.op import Affine, Arrays, Box, Shape, Weights
from robustcli.core.bounds.program import Call, Const, Value, reads
from robustcli.core.bounds.rows import Rows, Window

Number = float | int


class Scaling(Affine):
    """y = s x + t; weights (s, t), each to be broadcast over [B, *shape].

    Eight roundings: a BatchNorm has the square root, a division, two products and three sums.
    """

    terms = 8

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return xs[0] * weights[0]

    def offset(self, weights: Weights) -> Tensor | None:
        return weights[1]

    def absolute(self, weights: Weights) -> Weights:
        return (weights[0].abs(), weights[1])

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [a * weights[0]]

    def window(self, weights: Weights, rows: Window, shapes: Sequence[Shape]) -> Window | None:
        """The same rows, where s and t are constant over a plane."""
        flat = all(one.dim() < 2 or tuple(one.shape[-2:]) == (1, 1) for one in weights)
        return rows if flat and all(one.dim() != 1 for one in weights) else None


class Arithmetic(Scaling):
    """x + c, x - c, c - x, x c or x / c, by `made`: c -> (s, t)."""

    def __init__(self, constant: Const | Number, made: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.constant, self.made = constant, made

    def read(self, dtype: torch.dtype, clean: Sequence[Tensor] | None = None) -> Weights:
        if isinstance(self.constant, Const):
            return self.made(self.constant.to(dtype))
        # A Python number meets float32 tensors: float32 execution rounds it, which one of the terms covers.
        return self.made(torch.tensor(self.constant, dtype=dtype))


class BatchNorm(Scaling):
    """s = w / sqrt(var + eps), t = b - mean s; w = 1 and b = 0 without affine parameters.

    In eval mode mean and var are the running ones. In train mode `read` gets the activations of the clean
    images: mean and var are theirs, differentiably, and the running ones move once, as in torch.
    """

    def __init__(self, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        self.module = module

    def read(self, dtype: torch.dtype, clean: Sequence[Tensor] | None = None) -> Weights:
        module = self.module
        mean, var = module.running_mean, module.running_var
        if clean is not None and (module.training or mean is None or var is None):
            mean, var = self._observed(clean[0])
        if mean is None or var is None:
            raise ValueError("BatchNorm without running statistics")
        scale = torch.rsqrt(var.to(dtype) + module.eps)
        if module.weight is not None:
            scale = scale * module.weight.to(dtype)
        shift = -mean.to(dtype) * scale
        if module.bias is not None:
            shift = shift + module.bias.to(dtype)
        return _column(module, scale), _column(module, shift)

    def error(self, weights: Weights, *boxes: Box) -> Tensor | None:
        """As for all affine steps, with |mean s| in the scale beside |t|, which may have cancelled it."""
        error = super().error(weights, *boxes)
        mean = self.module.running_mean
        if error is None or mean is None:
            return error
        scale = weights[0].abs()
        return error + 2.0**-20 * scale * _column(self.module, mean.to(scale.dtype).abs())

    def _observed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of a batch per channel; the running statistics move towards them."""
        module, axes = self.module, [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(x, axes, correction=0)
        if module.training and module.track_running_stats and module.running_mean is not None:
            self._remember(mean.detach(), var.detach(), x.numel() // x.shape[1])
        return mean, var

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        module = self.module
        share = module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if share is None:
                share = 1 / float(module.num_batches_tracked)
        unbiased = var * (count / max(count - 1, 1))
        for running, new in ((module.running_mean, mean), (module.running_var, unbiased)):
            if running is not None:
                running.lerp_(new.to(running.dtype), share or 0.0)


class Dropout(Scaling):
    """x in eval mode; x m / (1 - p) in train mode, the same mask m for image and bounds."""

    def __init__(self, module: nn.Dropout) -> None:
        self.module = module

    def read(self, dtype: torch.dtype, clean: Sequence[Tensor] | None = None) -> Weights:
        one = torch.ones((), dtype=dtype)
        if clean is not None:
            one = F.dropout(torch.ones_like(clean[0], dtype=dtype), self.module.p, self.module.training)
        return one, torch.zeros((), dtype=dtype)

    def pull(
        self, weights: Weights, lines: Arrays, a: Tensor, shapes: Sequence[Shape], pick: Rows, onto: Rows
    ) -> tuple[list[Tensor], Tensor | None]:
        """The mask is that of the image of each row."""
        mask = pick(weights[0]) if weights[0].dim() else weights[0]
        return [a * mask], None


def _column(module: nn.Module, v: Tensor) -> Tensor:
    """One value per channel, for [B, C] or [B, C, H, W]."""
    return v.reshape(-1, 1, 1) if isinstance(module, nn.BatchNorm2d) else v


@reads(nn.BatchNorm1d, nn.BatchNorm2d)
def _batchnorm(call: Call, module: nn.BatchNorm1d | nn.BatchNorm2d, x: Value) -> Value | None:
    if isinstance(module, nn.BatchNorm1d) and len(x.shape) != 1:
        return None
    return call.emit(BatchNorm(module), x)


@reads(nn.Dropout)
def _dropout(call: Call, module: nn.Dropout, x: Value) -> Value | None:
    return call.emit(Dropout(module), x)


@reads(operator.neg, torch.neg, "neg")
def _negated(call: Call, x: Value) -> Value | None:
    return call.emit(Arithmetic(-1.0, lambda c: (c, torch.zeros_like(c))), x)


@reads(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def _product(call: Call, x: Any, other: Any) -> Value | None:
    value, constant = (x, other) if isinstance(x, Value) else (other, x)
    return _scaled(call, value, constant, lambda c: (c, torch.zeros_like(c)))


@reads(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def _quotient(call: Call, x: Any, other: Any) -> Value | None:
    return _scaled(call, x, other, lambda c: (1 / c, torch.zeros_like(c)))


def shifted(call: Call, x: Any, other: Any, sign: int) -> Value | None:
    """x + sign * other, one of them a constant."""
    if isinstance(x, Value):
        return _scaled(call, x, other, lambda c: (torch.ones_like(c), sign * c))
    return _scaled(call, other, x, lambda c: (sign * torch.ones_like(c), c))


def _scaled(
    call: Call, value: Any, constant: Any, made: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Value | None:
    """s x + t of a constant; where that broadcasts x (grey over three channels), x is copied first."""
    if not isinstance(value, Value) or not isinstance(constant, (Const, int, float)):
        return None
    if isinstance(constant, Const) and call.shape != value.shape:
        shape, times = call.shape, math.prod(call.shape) // max(1, math.prod(value.shape))
        value = call.emit(Move(lambda t: t.expand(len(t), *shape), times), value)
    return call.emit(Arithmetic(constant, made), value)
