"""Activations of straight pieces: ReLU, LeakyReLU, and clamps such as ReLU6.

A line of slope s above f on [l, u] is s x + max(f(x) - s x), and one below it s x + min(f(x) - s x). Between
two kinks f(x) - s x is straight, so both extremes lie at l, at u or at a kink inside: the lines below are
bounds whatever slope is chosen, and a slope decides only how tight they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.bounds.op import Box, Elementwise, Lines, Weights
from robustcli.core.bounds.program import Call, Value, reads


class Rectifier(Elementwise):
    """f(x) = x for x >= 0, slope * x below; slope = 0 is ReLU, 0 <= slope < 1.

    Upper line: the chord. Lower line: through 0, with slope 1 where u > -l and the smaller slope elsewhere,
    which leaves the smaller area. Where l >= 0 or u <= 0 both lines are f itself.

    Source: Zhang et al., NeurIPS 2018, arXiv:1811.00866, section 3.3.
    """

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = slope

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return F.leaky_relu(xs[0], self.slope) if self.slope else F.relu(xs[0])

    def interval(self, weights: Weights, *boxes: Box) -> Box:
        return self.forward((), boxes[0][0]), self.forward((), boxes[0][1])

    def lines(self, box: Box) -> Lines:
        low, high = box
        below, above = low.clamp(max=0), high.clamp(min=0)
        width = above - below
        share = above / torch.where(width > 0, width, torch.ones_like(width))
        share = torch.where(low >= 0, torch.ones_like(share), share)
        share = torch.where(high <= 0, torch.zeros_like(share), share)
        chord = self.slope + (1 - self.slope) * share
        height = (1 - self.slope) * -below * share
        least = self.slope + (1 - self.slope) * (share > 0.5).to(low.dtype)
        return Lines(torch.where((low < 0) & (high > 0), least, chord), torch.zeros_like(low), chord, height)


class Clamp(Elementwise):
    """f(x) = min(max(x, start), stop).

    The slopes: where only one kink lies inside, those of ReLU; where both do, the upper line goes through
    (l, start) and (stop, stop), the lower one through (start, start) and (u, stop).
    """

    def __init__(self, start: float, stop: float) -> None:
        self.start, self.stop = start, stop

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return xs[0].clamp(self.start, self.stop)

    def interval(self, weights: Weights, *boxes: Box) -> Box:
        return self.forward((), boxes[0][0]), self.forward((), boxes[0][1])

    def lines(self, box: Box) -> Lines:
        low, high = box
        tiny = torch.finfo(low.dtype).tiny
        start, stop = self.forward((), low), self.forward((), high)
        chord = torch.where(high > low, (stop - start) / (high - low).clamp_min(tiny), torch.zeros_like(low))
        rise = self.stop - self.start
        starts, stops = low < self.start, high > self.stop
        over = torch.where(starts, rise / (self.stop - low).clamp_min(tiny), chord)
        over = torch.where(stops, over, chord)
        under = torch.where(stops, rise / (high - self.start).clamp_min(tiny), chord)
        under = torch.where(starts, under, chord)
        one, zero = torch.ones_like(low), torch.zeros_like(low)
        under = torch.where(starts & ~stops, torch.where(chord > 0.5, one, zero), under)
        over = torch.where(stops & ~starts, torch.where(chord > 0.5, one, zero), over)
        kinks = [low, high, low.clamp(min=self.start).minimum(high), low.clamp(min=self.stop).minimum(high)]
        gaps = torch.stack([self.forward((), x) for x in kinks])
        places = torch.stack(kinks)
        least, most = (gaps - under * places).amin(0), (gaps - over * places).amax(0)
        return Lines(under, least, over, most)


@reads(nn.ReLU)
def _relu_module(call: Call, module: nn.ReLU, x: Value) -> Value:
    return call.emit(Rectifier(), x)


@reads(F.relu, torch.relu, torch.relu_, "relu", "relu_")
def _relu(call: Call, input: Value, inplace: bool = False) -> Value:
    return call.emit(Rectifier(), input)


@reads(nn.LeakyReLU)
def _leaky_module(call: Call, module: nn.LeakyReLU, x: Value) -> Value | None:
    return _leaky(call, x, module.negative_slope)


@reads(F.leaky_relu)
def _leaky(call: Call, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value | None:
    if not 0 <= negative_slope < 1:
        return None
    return call.emit(Rectifier(negative_slope), input)


@reads(nn.Hardtanh, nn.ReLU6)
def _clamp_module(call: Call, module: nn.Hardtanh, x: Value) -> Value:
    return call.emit(Clamp(module.min_val, module.max_val), x)


@reads(F.hardtanh)
def _hardtanh(
    call: Call, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    return call.emit(Clamp(min_val, max_val), input)


@reads(F.relu6)
def _relu6(call: Call, input: Value, inplace: bool = False) -> Value:
    return call.emit(Clamp(0.0, 6.0), input)


@reads(torch.clamp, "clamp", "clamp_")
def _clamped(call: Call, input: Value, min: Any = None, max: Any = None) -> Value | None:
    if not (isinstance(min, (int, float)) and isinstance(max, (int, float)) and min < max):
        return None
    return call.emit(Clamp(float(min), float(max)), input)
