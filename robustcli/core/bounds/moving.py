"""What moves numbers and computes none: reshape, permutation, zero padding, nearest upsampling."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.bounds.op import Affine, Shape, Weights
from robustcli.core.bounds.program import Call, Value, reads


class Reshape(Affine):
    """The same numbers in another shape [B, *shape]."""

    monotone = exact = True

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return xs[0].reshape(len(xs[0]), *self.shape)

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [a.reshape(len(a), *shapes[0])]


class Move(Affine):
    """A linear function of torch that copies numbers, or leaves 0."""

    monotone = exact = True

    def __init__(self, move: Callable[[Tensor], Tensor], spread: int = 1) -> None:
        self.move, self.spread = move, spread

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        return self.move(xs[0])


@reads(nn.Flatten, nn.Unflatten)
def _reshaping_module(call: Call, module: nn.Module, x: Value) -> Value | None:
    return call.emit(Reshape(call.shape), x)


@reads(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)
@reads("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten")
def _reshaped(call: Call, x: Value, *shape: Any, **named: Any) -> Value | None:
    return call.emit(Reshape(call.shape), x)


@reads(nn.Identity)
def _identity_module(call: Call, module: nn.Module, x: Value) -> Value | None:
    return x


@reads("contiguous", "clone", "detach", "float", "double")
def _same(call: Call, x: Value, *options: Any, **named: Any) -> Value | None:
    return x


@reads("to")
def _converted(call: Call, x: Value, *to: Any, **named: Any) -> Value | None:
    """The same numbers; not in fewer bits than the bounds are proven for."""
    dtypes = [one for one in (*to, *named.values()) if isinstance(one, torch.dtype)]
    return x if all(one in (torch.float32, torch.float64) for one in dtypes) else None


@reads(torch.permute, "permute")
def _permuted(call: Call, x: Value, *dims: Any) -> Value | None:
    axes = tuple(dims[0]) if isinstance(dims[0], (tuple, list)) else dims
    return call.emit(Move(lambda t: t.permute(axes)), x)


@reads(torch.transpose, "transpose")
def _transposed(call: Call, x: Value, dim0: int, dim1: int) -> Value | None:
    return call.emit(Move(lambda t: t.transpose(dim0, dim1)), x)


@reads(nn.ZeroPad2d)
def _padding_module(call: Call, module: nn.ZeroPad2d, x: Value) -> Value | None:
    padding = list(module.padding)
    return call.emit(Move(lambda t: F.pad(t, padding)), x)


@reads(F.pad)
def _padded(call: Call, input: Value, pad: Any, mode: str = "constant", value: Any = None) -> Value | None:
    if mode != "constant" or value not in (None, 0):
        return None
    return call.emit(Move(lambda t: F.pad(t, list(pad))), input)


def _larger(call: Call, x: Value, mode: str) -> Value | None:
    if mode != "nearest" or len(x.shape) != 3:
        return None
    before, size = x.shape[1:], call.shape[1:]
    spread = -(-size[0] // before[0]) * -(-size[1] // before[1])
    return call.emit(Move(lambda t: F.interpolate(t, size=size, mode="nearest"), spread), x)


@reads(nn.Upsample, nn.UpsamplingNearest2d)
def _upsampling_module(call: Call, module: nn.Upsample, x: Value) -> Value | None:
    if not _whole(module.scale_factor):
        return None
    return _larger(call, x, module.mode)


@reads(F.interpolate)
def _upsampled(
    call: Call, input: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **rest: Any
) -> Value | None:
    if not _whole(scale_factor):
        return None
    return _larger(call, input, mode)


@reads(operator.getitem)
def _selected(call: Call, x: Value, index: Any) -> Value | None:
    """A part of each image's numbers: slices, new axes and places behind the batch."""
    parts = index if isinstance(index, tuple) else (index,)
    if parts[0] not in (slice(None), ...) or not all(_plain(part) for part in parts):
        return None
    return call.emit(Move(lambda t: t[index]), x)


def _plain(part: Any) -> bool:
    return part is None or part is ... or isinstance(part, (int, slice))


def _whole(factor: Any) -> bool:
    """Whether a scale factor is a whole number: the size of the answer then says all."""
    factors = factor if isinstance(factor, (tuple, list)) else (factor,)
    return all(one is None or float(one).is_integer() for one in factors)
