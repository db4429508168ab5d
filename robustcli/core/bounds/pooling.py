"""Averages and maxima over windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.bounds.op import (
    FINE,
    MANY,
    Affine,
    Arrays,
    Box,
    Op,
    Shape,
    Weights,
    gamma,
    largest,
)
from robustcli.core.bounds.program import Call, Value, at, both, reads
from robustcli.core.bounds.rows import Rows, Window


class Average(Affine):
    """Means over windows, or over whole dimensions, by a function of torch."""

    monotone = True

    def __init__(self, mean: Callable[[Tensor], Tensor], terms: int) -> None:
        self.mean, self.terms, self.spread = mean, terms, terms

    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        mean: Tensor = self.mean(xs[0])
        return mean


class MaxPool(Op):
    """y = max of x over windows.

    Lines: y >= x_i with i the element of the largest lower bound. Where it is the largest for sure
    (l_i >= u_j for all others) y = x_i; elsewhere y <= max u.
    """

    def __init__(self, options: dict[str, Any], before: Shape, after: Shape) -> None:
        self.options, self.before, self.after = options, before, after

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        most: Tensor = F.max_pool2d(xs[0], **self.options)
        return most

    def interval(self, weights: Weights, *boxes: Box) -> Box:
        return self.forward(weights, boxes[0][0]), self.forward(weights, boxes[0][1])

    def windows(self, device: torch.device) -> Tensor:
        """int64 [outputs, elements of a window]: places in a plane of the input, -1 in the padding."""
        sides = []
        for axis in (0, 1):
            start = torch.arange(self.after[1 + axis], device=device) * at(self.options["stride"], axis)
            step = torch.arange(at(self.options["kernel_size"], axis), device=device)
            place = (
                start[:, None] - at(self.options["padding"], axis) + step * at(self.options["dilation"], axis)
            )
            sides.append(place)
        rows, columns = sides[0][:, None, :, None], sides[1][None, :, None, :]
        height, width = self.before[1:]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return torch.where(inside, rows * width + columns, -1).flatten(2).flatten(0, 1)

    def relax(self, weights: Weights, *boxes: Box) -> Arrays:
        """Each [B, C, *plane]: where the element i of the largest lower bound lies in its plane, int64;
        1 where it is the largest for sure and 0 elsewhere; the largest upper bound."""
        windows = self.windows(boxes[0][0].device)
        places, padding = windows.clamp_min(0), windows < 0
        low, high = (side.flatten(2)[..., places].masked_fill(padding, -math.inf) for side in boxes[0])
        best, which = low.max(-1, keepdim=True)
        others = high.scatter(-1, which, -math.inf).amax(-1, keepdim=True)
        chosen = places.expand(low.shape).gather(-1, which)
        sure = (best >= others).to(low.dtype)
        shape = (len(low), *self.after)
        return chosen.reshape(shape), sure.reshape(shape), high.amax(-1).reshape(shape)

    def contested(self, box: Box) -> Tensor:
        """bool [B, *shape of the input]: elements that may be the largest of a window that is not decided."""
        windows = self.windows(box[0].device)
        places, padding = windows.clamp_min(0), windows < 0
        low, high = (side.flatten(2)[..., places].masked_fill(padding, -math.inf) for side in box)
        best, which = low.max(-1, keepdim=True)
        others = high.scatter(-1, which, -math.inf).amax(-1, keepdim=True)
        found = ((high >= best) & (others > best) & ~padding).flatten(2).to(low.dtype)
        flags = torch.zeros_like(box[0]).flatten(2)
        flags = flags.scatter_add(2, places.flatten().expand(found.shape), found)
        return (flags > 0).reshape(box[0].shape)

    def pull(
        self, weights: Weights, lines: Arrays, a: Tensor, shapes: Sequence[Shape], pick: Rows, onto: Rows
    ) -> tuple[list[Tensor], Tensor | None]:
        chosen, sure, most = lines
        above, below = a.clamp(min=0), a.clamp(max=0)
        moved, place = pick.dot(below, (1 - sure) * most), pick(chosen)
        size = self.before[1:]
        if isinstance(onto, Window):
            size = onto.size
            y, x = place // self.before[2], place % self.before[2]
            y, x = y - onto.origin[:, :1, None, None], x - onto.origin[:, 1:, None, None]
            place = y.clamp(0, size[0] - 1) * size[1] + x.clamp(0, size[1] - 1)
        planes = a.new_zeros((len(a), self.before[0], size[0] * size[1]))
        flat = (above + below * pick(sure)).flatten(2)
        planes = planes.scatter_add(2, place.flatten(2).expand(flat.shape), flat)
        return [planes.reshape(len(a), self.before[0], *size)], moved

    def window(self, weights: Weights, rows: Window, shapes: Sequence[Shape]) -> Window | None:
        names = ("stride", "padding", "dilation", "kernel_size")
        stride, padding, dilation, kernel = (both(self.options[name]) for name in names)
        reach = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
        return rows.moved(stride, padding, reach, (self.before[1], self.before[2]))

    def charge(self, lines: Arrays, error: Tensor | None, box: Box, *boxes: Box) -> Tensor | None:
        """Roundings of one sum over the node, and of what overlapping windows add up in one element."""
        return 4 * gamma(MANY, FINE) * largest(box)


def _max_pool(call: Call, x: Value, options: dict[str, Any]) -> Value | None:
    if len(x.shape) != 3:
        return None
    return call.emit(MaxPool(options, x.shape, call.shape), x)


@reads(nn.MaxPool2d)
def _max_pool_module(call: Call, module: nn.MaxPool2d, x: Value) -> Value | None:
    if module.return_indices:
        return None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return _max_pool(call, x, {name: getattr(module, name) for name in names})


@reads(F.max_pool2d, torch.max_pool2d)
def _max_pooled(
    call: Call,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value | None:
    if return_indices:
        return None
    options = {
        "kernel_size": kernel_size,
        "stride": stride or kernel_size,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": ceil_mode,
    }
    return _max_pool(call, input, options)


def _averaged(call: Call, x: Value, options: dict[str, Any]) -> Value:
    terms = at(options["kernel_size"], 0) * at(options["kernel_size"], 1)
    return call.emit(Average(lambda t: F.avg_pool2d(t, **options), terms), x)


@reads(nn.AvgPool2d)
def _avg_pool_module(call: Call, module: nn.AvgPool2d, x: Value) -> Value | None:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _averaged(call, x, {name: getattr(module, name) for name in names})


@reads(F.avg_pool2d)
def _avg_pooled(
    call: Call,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Value | None:
    options = {
        "kernel_size": kernel_size,
        "stride": stride or kernel_size,
        "padding": padding,
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor_override,
    }
    return _averaged(call, input, options)


def _adaptive(call: Call, x: Value, size: Any) -> Value:
    return call.emit(Average(lambda t: F.adaptive_avg_pool2d(t, size), math.prod(x.shape[-2:])), x)


@reads(nn.AdaptiveAvgPool2d)
def _adaptive_module(call: Call, module: nn.AdaptiveAvgPool2d, x: Value) -> Value | None:
    return _adaptive(call, x, module.output_size)


@reads(F.adaptive_avg_pool2d)
def _adaptive_pooled(call: Call, input: Value, output_size: Any) -> Value | None:
    return _adaptive(call, input, output_size)


@reads(torch.mean, "mean")
def _mean(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value | None:
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    if not axes:
        return None
    terms = math.prod(x.shape[axis - 1 if axis > 0 else axis] for axis in axes)
    return call.emit(Average(lambda t: t.mean(axes, keepdim=keepdim), terms), x)
