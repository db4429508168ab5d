"""Convolution and matrix product."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.bounds.op import Affine, Arrays, Shape, Weights
from robustcli.core.bounds.program import Call, Const, Value, both, reads
from robustcli.core.bounds.rows import Rows, Window


class _Weighted(Affine):
    """An affine map with a weight and perhaps a bias."""

    def __init__(self, weight: Const, bias: Const | None) -> None:
        self.weight, self.bias = weight, bias

    def read(self, dtype: torch.dtype, clean: Sequence[Tensor] | None = None) -> Weights:
        weight = self.weight.to(dtype)
        return (weight,) if self.bias is None else (weight, self.bias.to(dtype))

    def absolute(self, weights: Weights) -> Weights:
        return (weights[0].abs(),)


class MatMul(_Weighted):
    """y = x W^T + b over the last dimension."""

    def __init__(self, weight: Const, bias: Const | None) -> None:
        super().__init__(weight, bias)
        self.spread, self.terms = weight.get().shape

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return F.linear(xs[0], weights[0])

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return F.linear(xs[0], *weights)

    def offset(self, weights: Weights) -> Tensor | None:
        return weights[1] if len(weights) > 1 else None

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [a @ weights[0]]


class Convolution(_Weighted):
    """y = W * x + b, two-dimensional; any stride, padding, dilation and groups."""

    def __init__(
        self,
        weight: Const,
        bias: Const | None,
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        outputs, inputs, height, width = weight.get().shape
        self.terms, self.spread = inputs * height * width, outputs // groups * height * width

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return self._convolved(xs[0], weights[0], None)

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return self._convolved(xs[0], weights[0], weights[1] if len(weights) > 1 else None)

    def offset(self, weights: Weights) -> Tensor | None:
        return weights[1].reshape(-1, 1, 1) if len(weights) > 1 else None

    def window(self, weights: Weights, rows: Window, shapes: Sequence[Shape]) -> Window | None:
        if isinstance(self.padding, str):
            return None
        kernel = weights[0].shape[2:]
        reach = [self.dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
        return rows.moved(self.stride, self.padding, reach, (shapes[0][1], shapes[0][2]))

    def pull(
        self, weights: Weights, lines: Arrays, a: Tensor, shapes: Sequence[Shape], pick: Rows, onto: Rows
    ) -> tuple[list[Tensor], Tensor | None]:
        if not isinstance(onto, Window):
            return super().pull(weights, lines, a, shapes, pick, onto)
        b = self.offset(weights)
        moved = None if b is None else (a * b).flatten(1).sum(1)
        read = F.conv_transpose2d(
            a, weights[0], None, self.stride, 0, 0, groups=self.groups, dilation=self.dilation
        )
        return [read * onto.inside()], moved

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """The transposed convolution; rows and columns that no output reads get 0."""
        if isinstance(self.padding, str):
            return super().transpose(weights, a, shapes)
        kernel, missing = weights[0].shape[2:], []
        for axis in (0, 1):
            reach = self.dilation[axis] * (kernel[axis] - 1) + 1
            whole = (a.shape[2 + axis] - 1) * self.stride[axis] - 2 * self.padding[axis] + reach
            missing.append(shapes[0][1 + axis] - whole)
        return [
            F.conv_transpose2d(
                a, weights[0], None, self.stride, self.padding, missing, self.groups, self.dilation
            )
        ]


def _given(bias: Tensor | None) -> Tensor:
    """The bias of a module that had one when it was read."""
    if bias is None:
        raise ValueError("the bias of a module was taken away after its network was read")
    return bias


def _const(tensor: Const | None) -> bool:
    return tensor is None or isinstance(tensor, Const)


@reads(nn.Linear)
def _linear_module(call: Call, module: nn.Linear, x: Value) -> Value | None:
    bias = None if module.bias is None else Const(lambda: module.bias)
    return call.emit(MatMul(Const(lambda: module.weight), bias), x)


@reads(F.linear)
def _linear(call: Call, input: Any, weight: Any, bias: Any = None) -> Value | None:
    if not (isinstance(input, Value) and isinstance(weight, Const) and _const(bias)):
        return None
    return call.emit(MatMul(weight, bias), input)


@reads(operator.matmul, torch.matmul, torch.mm, "matmul", "mm")
def _matmul(call: Call, input: Any, other: Any) -> Value | None:
    """x W, W [inputs, outputs]."""
    if not (isinstance(input, Value) and isinstance(other, Const)) or other.get().dim() != 2:
        return None
    return call.emit(MatMul(Const(lambda: other.get().T), None), input)


@reads(nn.Conv2d)
def _conv_module(call: Call, module: nn.Conv2d, x: Value) -> Value | None:
    if module.padding_mode != "zeros":
        return None
    bias = None if module.bias is None else Const(lambda: _given(module.bias))
    weight, sizes = Const(lambda: module.weight), (module.stride, module.padding, module.dilation)
    return _convolved(call, x, weight, bias, *sizes, module.groups)


@reads(F.conv2d, torch.conv2d)
def _conv(
    call: Call,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value | None:
    if not (isinstance(input, Value) and isinstance(weight, Const) and _const(bias)):
        return None
    return _convolved(call, input, weight, bias, stride, padding, dilation, groups)


def _convolved(
    call: Call, x: Value, weight: Const, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    """The value of a convolution, whose sizes are as torch takes them."""
    if not isinstance(padding, str):
        padding = both(padding)
    return call.emit(Convolution(weight, bias, both(stride), padding, both(dilation), groups), x)
