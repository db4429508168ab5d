"""Smooth activations: SiLU, GELU, sigmoid, tanh.

Each f here is a function with known inflection points p_1 < ... < p_m: on the pieces between them f' is
monotone, so f is convex or concave there, and f(x) - s x with it.

**A line of any slope s.** On one piece, cut by [l, u] to [a, b], let g(x) = f(x) - s x be convex (a concave
one is treated as -g). Its maximum lies at a or b. Bisection on the sign of g' leaves a bracket [c, d] of
width (b - a) / 2^20 that holds the minimiser, or ends at the side where it lies. A convex function lies above
its tangents, so min g >= max(g(c) - |g'(c)| (d - c), g(d) - |g'(d)| (d - c)). With |g'| <= M (d - c), M the
largest |f''|, the loss is at most M (b - a)^2 / 2^40. The extremes over all pieces bound g on [l, u],
whatever s is: the line s x + min g lies below f, and s x + max g above. The slopes are those of the chord.

**A box.** f is monotone between its stationary points (SiLU and GELU have one, a minimum), so its extremes on
[l, u] are at l, at u, or at a stationary point inside.

**float32 execution** is taken to be within 2^-20 max(1, |x|) of f; its libraries state a few units of 2^-24.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.bounds.op import Box, Elementwise, Lines, Weights, largest
from robustcli.core.bounds.program import Call, Value, reads

_HALVINGS = 20
_OFF = 2.0**-20  # by how much float32 execution may differ, as a share of max(1, |x|)
_ROUND = 2.0**-40  # rounding of f and f' in float64 and of the numbers below, as a share of max(1, |x|)


class Smooth(Elementwise):
    """f with `inflections` where f'' changes its sign, f convex on the piece `convex` and every second one.

    low: the stationary point where f is smallest, with the value there; None for a monotone f.
    """

    inflections: tuple[float, ...]
    convex: int
    low: tuple[float, float] | None = None

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """f'(x)."""

    def interval(self, weights: Weights, *boxes: Box) -> Box:
        low, high = boxes[0]
        start, stop = self.forward((), low), self.forward((), high)
        least, most = torch.minimum(start, stop), torch.maximum(start, stop)
        if self.low is not None:
            place, value = self.low
            least = torch.where((low < place) & (high > place), torch.full_like(least, value), least)
        return least, most

    def error(self, weights: Weights, *boxes: Box) -> Tensor | None:
        return _OFF * largest(boxes[0]).clamp_min(1)

    def lines(self, box: Box) -> Lines:
        low, high = box
        start, stop = self.forward((), low), self.forward((), high)
        wide = high - low > 1e-6
        slope = (stop - start) / torch.where(wide, high - low, torch.ones_like(low))
        slope = torch.where(wide, slope, self.slope((low + high) / 2))
        least, most = self._extremes(low, high, slope)
        with torch.no_grad():
            off = _ROUND * largest(box).clamp_min(1)
        return Lines(slope, least - off, slope, most + off)

    def _extremes(self, low: Tensor, high: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """A number below and one above f(x) - slope x on [low, high]."""
        edges = (-math.inf, *self.inflections, math.inf)
        least = torch.full_like(low, math.inf)
        most = -least
        for piece, (left, right) in enumerate(zip(edges, edges[1:], strict=False)):
            a, b = low.clamp(left, right), high.clamp(left, right)
            sign = 1.0 if piece % 2 == self.convex % 2 else -1.0
            empty = (high < left) | (low > right)
            inner = sign * self._valley(a, b, slope, sign)
            ends = torch.stack((self._gap(a, slope), self._gap(b, slope)))
            under, over = (inner, ends.amax(0)) if sign > 0 else (ends.amin(0), inner)
            least = torch.where(empty, least, torch.minimum(least, under))
            most = torch.where(empty, most, torch.maximum(most, over))
        return least, most

    def _gap(self, x: Tensor, slope: Tensor) -> Tensor:
        return self.forward((), x) - slope * x

    def _valley(self, a: Tensor, b: Tensor, slope: Tensor, sign: float) -> Tensor:
        """A number below sign (f(x) - slope x), convex on [a, b]."""
        with torch.no_grad():
            c, d = a.clone(), b.clone()
            for _ in range(_HALVINGS):
                middle = (c + d) / 2
                falls = sign * (self.slope(middle) - slope) < 0
                c, d = torch.where(falls, middle, c), torch.where(falls, d, middle)
        width = d - c
        c, d = torch.where(c == a, a, c), torch.where(d == b, b, d)  # the ends have gradients
        below = [sign * self._gap(x, slope) - (self.slope(x) - slope).abs() * width for x in (c, d)]
        return torch.maximum(*below)


class SiLU(Smooth):
    """x sigmoid(x); f'' = 0 at +-p, where p tanh(p / 2) = 2; convex between."""

    inflections = (-2.3993572805154675, 2.3993572805154675)
    convex = 1
    low = (-1.278464542761074, -0.2784645427610738)

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return F.silu(xs[0])

    def slope(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))


class GELU(Smooth):
    """x Phi(x), Phi the normal distribution; f'' = phi(x) (2 - x^2) is 0 at +-sqrt(2); convex between."""

    inflections = (-math.sqrt(2), math.sqrt(2))
    convex = 1
    low = (-0.7517915246935645, -0.16997120747990369)

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return F.gelu(xs[0])

    def slope(self, x: Tensor) -> Tensor:
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        slope: Tensor = torch.special.ndtr(x) + x * density
        return slope


class TanhGELU(Smooth):
    """x (1 + tanh v) / 2, v = sqrt(2 / pi) (x + 0.044715 x^3)."""

    inflections = (-1.4185040087908283, 1.4185040087908283)
    convex = 1
    low = (-0.7524614220710162, -0.17004075057125412)
    _K = math.sqrt(2 / math.pi)

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return F.gelu(xs[0], approximate="tanh")

    def slope(self, x: Tensor) -> Tensor:
        t = torch.tanh(self._K * (x + 0.044715 * x**3))
        return (1 + t) / 2 + x / 2 * (1 - t * t) * self._K * (1 + 3 * 0.044715 * x * x)


class Sigmoid(Smooth):
    """1 / (1 + exp(-x)); convex below 0, concave above."""

    inflections = (0.0,)
    convex = 0

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return torch.sigmoid(xs[0])

    def slope(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 - s)


class Tanh(Smooth):
    """tanh(x); convex below 0, concave above."""

    inflections = (0.0,)
    convex = 0

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        return torch.tanh(xs[0])

    def slope(self, x: Tensor) -> Tensor:
        return 1 - torch.tanh(x) ** 2


@reads(nn.SiLU)
def _silu_module(call: Call, module: nn.SiLU, x: Value) -> Value:
    return call.emit(SiLU(), x)


@reads(F.silu)
def _silu(call: Call, input: Value, inplace: bool = False) -> Value:
    return call.emit(SiLU(), input)


@reads(nn.GELU)
def _gelu_module(call: Call, module: nn.GELU, x: Value) -> Value | None:
    return _gelu(call, x, module.approximate)


@reads(F.gelu)
def _gelu(call: Call, input: Value, approximate: str = "none") -> Value | None:
    return call.emit(TanhGELU() if approximate == "tanh" else GELU(), input)


@reads(nn.Sigmoid)
def _sigmoid_module(call: Call, module: nn.Sigmoid, x: Value) -> Value:
    return call.emit(Sigmoid(), x)


@reads(torch.sigmoid, F.sigmoid, "sigmoid")
def _sigmoid(call: Call, input: Value) -> Value:
    return call.emit(Sigmoid(), input)


@reads(nn.Tanh)
def _tanh_module(call: Call, module: nn.Tanh, x: Value) -> Value:
    return call.emit(Tanh(), x)


@reads(torch.tanh, F.tanh, "tanh")
def _tanh(call: Call, input: Value, *rest: Any) -> Value:
    return call.emit(Tanh(), input)
