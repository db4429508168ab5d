"""Where branches of a network meet: sum, difference, concatenation."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcli.core.bounds.op import Affine, Box, Shape, Weights
from robustcli.core.bounds.program import Call, Value, reads
from robustcli.core.bounds.rows import Window
from robustcli.core.bounds.scaling import shifted


class Sum(Affine):
    """y = x_1 + sign x_2, of one shape."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.monotone = sign > 0

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return xs[0] + self.sign * xs[1]

    def interval(self, weights: Weights, *boxes: Box) -> Box:
        (low, high), (other_low, other_high) = boxes
        if self.sign > 0:
            return low + other_low, high + other_high
        return low - other_high, high - other_low

    def size(self, weights: Weights, *boxes: Box) -> Tensor:
        reach = [torch.maximum(low.abs(), high.abs()) for low, high in boxes]
        return reach[0] + reach[1]

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [a, self.sign * a]

    def window(self, weights: Weights, rows: Window, shapes: Sequence[Shape]) -> Window | None:
        return rows


class Concatenation(Affine):
    """y = (x_1, x_2, ...) along one dimension that is not the batch."""

    monotone = exact = True

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.axis)

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return list(a.split([shape[self.axis - 1] for shape in shapes], self.axis))


def _joined(call: Call, x: Any, other: Any, alpha: Any, sign: int) -> Value | None:
    if alpha != 1:
        return None
    if not (isinstance(x, Value) and isinstance(other, Value)):
        return shifted(call, x, other, sign)
    if x.shape != other.shape:
        return None
    return call.emit(Sum(sign), x, other)


@reads(operator.add, operator.iadd, torch.add, "add", "add_")
def _added(call: Call, x: Any, other: Any, *, alpha: Any = 1) -> Value | None:
    return _joined(call, x, other, alpha, 1)


@reads(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _subtracted(call: Call, x: Any, other: Any, *, alpha: Any = 1) -> Value | None:
    return _joined(call, x, other, alpha, -1)


@reads(torch.cat, torch.concat)
def _concatenated(call: Call, tensors: Sequence[Any], dim: int = 0) -> Value | None:
    values = [value for value in tensors if isinstance(value, Value)]
    if len(values) != len(tensors) or dim == 0:
        return None
    axis = dim if dim > 0 else len(values[0].shape) + 1 + dim
    return call.emit(Concatenation(axis), *values)
