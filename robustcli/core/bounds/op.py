"""What one operation of a network knows of bounds: its value, its rule for boxes, its rule for lines.

Tensors have the batch in front. A box is a pair (lower, upper) of the same shape, and holds elementwise. The
coefficients `a` of a backward pass have one row per bound that is wanted: [Q, *shape of the node].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from robustcli.core.bounds.rows import Rows, Window, flat

Box: TypeAlias = tuple[Tensor, Tensor]
Weights: TypeAlias = tuple[Tensor, ...]
Arrays: TypeAlias = tuple[Tensor, ...]
Shape: TypeAlias = tuple[int, ...]

UNIT = 2.0**-24  #: unit roundoff of float32: relative error of one rounded operation
FINE = 2.0**-53  #: the same of float64
TINY = 2.0**-126  #: below it float32 may flush to zero
MANY = 2**24  #: elements of a node, at most; what a float64 sum over all of them may lose is provided for


def gamma(terms: int, unit: float = UNIT) -> float:
    """n u / (1 - n u): relative error of n rounded operations in any order (Higham, SIAM 2002, 3.1)."""
    return terms * unit / (1 - terms * unit)


class Lines(NamedTuple):
    """low_slope x + low <= f(x) <= high_slope x + high on a box, elementwise; each [B, *shape]."""

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor


class Op(ABC):
    """One operation. `read` is asked once per pass, so weights are those of that moment."""

    def read(self, dtype: torch.dtype, clean: Sequence[Tensor] | None = None) -> Weights:
        """The weights in this precision. `clean`: activations of a training pass, which BatchNorm reads."""
        return ()

    @abstractmethod
    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        """The value [B, *shape]."""

    @abstractmethod
    def interval(self, weights: Weights, *boxes: Box) -> Box:
        """A box that holds the value for all points of the boxes, up to rounding."""

    def error(self, weights: Weights, *boxes: Box) -> Tensor | None:
        """By how much float32 execution may differ from the exact value, [B, *shape]; None: not at all."""
        return None

    def relax(self, weights: Weights, *boxes: Box) -> Arrays:
        """What a backward pass needs of the boxes of the inputs, each [B, ...]: the lines of a bend."""
        return ()

    @abstractmethod
    def pull(
        self, weights: Weights, lines: Arrays, a: Tensor, shapes: Sequence[Shape], pick: Rows, onto: Rows
    ) -> tuple[list[Tensor], Tensor | None]:
        """Coefficients c_i and numbers d with a . f(x) >= sum_i c_i . x_i + d on the boxes.

        Args:
            a: [Q, *shape of this node], or the windows that `pick` says.
            lines: from `relax`.
            shapes: of the inputs.
            pick: the rows of a. onto: the rows of the answer, other than `pick` where `window` says so.

        Returns: c_i [Q, *shapes[i]] for each input, or their windows; d [Q], None for 0.
        """

    def window(self, weights: Weights, rows: Window, shapes: Sequence[Shape]) -> Window | None:
        """What rows of windows become in the inputs; None where only whole planes can go through."""
        return None

    def charge(self, lines: Arrays, error: Tensor | None, box: Box, *boxes: Box) -> Tensor | None:
        """v [B, *shape] >= 0: |a| . v covers float32 execution and the float64 rounding of `pull`.

        box: of this node; boxes: of its inputs.
        """
        return error


class Affine(Op):
    """y = sum_i W_i x_i + b.

    terms: most products that one element of y sums. spread: most elements of y that one element of x
    reaches. monotone: W >= 0, so that the ends of a box go to the ends of a box.
    """

    terms: int = 1
    spread: int = 1
    monotone: bool = False
    exact: bool = False

    @abstractmethod
    def linear(self, weights: Weights, *xs: Tensor) -> Tensor:
        """sum_i W_i x_i without the offset."""

    def offset(self, weights: Weights) -> Tensor | None:
        """b, to be broadcast over [B, *shape]; None for 0."""
        return None

    def absolute(self, weights: Weights) -> Weights:
        """The weights of |W|, for `linear`."""
        return weights

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        y, b = self.linear(weights, *xs), self.offset(weights)
        return y if b is None else y + b

    def interval(self, weights: Weights, *boxes: Box) -> Box:
        """Centre and radius: W c + b -+ |W| r."""
        if self.monotone:
            lower = self.forward(weights, *(low for low, _ in boxes))
            return lower, self.forward(weights, *(high for _, high in boxes))
        centre = self.forward(weights, *((low + high) / 2 for low, high in boxes))
        radius = self.linear(self.absolute(weights), *((high - low) / 2 for low, high in boxes))
        return centre - radius, centre + radius

    def size(self, weights: Weights, *boxes: Box) -> Tensor:
        """|W| max|x| + |b|, the scale of all rounding errors; [B, *shape]."""
        reach = self.linear(self.absolute(weights), *(largest(box) for box in boxes))
        b = self.offset(weights)
        return reach if b is None else reach + b.abs()

    def error(self, weights: Weights, *boxes: Box) -> Tensor | None:
        """gamma_n (|W| max|x| + |b|) with n = terms + 2, float32; and the float64 rounding of our own passes.

        The centre and radius of a box sum `terms` products in float64, a backward pass `spread` of them and
        the product with b over the elements of the node: the errors of all are shares of the same scale.
        """
        if self.exact:
            return None
        own = 4 * gamma(self.terms + self.spread + MANY, FINE)
        share = gamma(self.terms + 2) * (1 + 2.0**-10) + own
        return share * self.size(weights, *boxes) + (self.terms + 2) * TINY

    def pull(
        self, weights: Weights, lines: Arrays, a: Tensor, shapes: Sequence[Shape], pick: Rows, onto: Rows
    ) -> tuple[list[Tensor], Tensor | None]:
        b = self.offset(weights)
        moved = None if b is None else flat(a * b).sum(1)
        return self.transpose(weights, a, shapes), moved

    def charge(self, lines: Arrays, error: Tensor | None, box: Box, *boxes: Box) -> Tensor | None:
        """A sum that only moves numbers still rounds where several of them meet in one."""
        if error is None and self.spread > 1:
            return gamma(self.spread + 8, FINE) * largest(box)
        return error

    def transpose(self, weights: Weights, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """W_i^T a for each input i: [Q, *shapes[i]]; here by the gradient of `linear`."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            zeros = [a.new_zeros((len(a), *shape)).requires_grad_() for shape in shapes]
            y = self.linear(weights, *zeros)
            return list(torch.autograd.grad(y, zeros, a, create_graph=differentiable))


class Elementwise(Op):
    """y = f(x), one number at a time."""

    @abstractmethod
    def lines(self, box: Box) -> Lines:
        """A line below and a line above f on the box."""

    def relax(self, weights: Weights, *boxes: Box) -> Arrays:
        return self.lines(boxes[0])

    def window(self, weights: Weights, rows: Window, shapes: Sequence[Shape]) -> Window | None:
        return rows

    def pull(
        self, weights: Weights, lines: Arrays, a: Tensor, shapes: Sequence[Shape], pick: Rows, onto: Rows
    ) -> tuple[list[Tensor], Tensor | None]:
        low_slope, low, high_slope, high = lines
        above, below = a.clamp(min=0), a.clamp(max=0)
        moved = pick.dot(above, low) + pick.dot(below, high)
        return [above * pick(low_slope) + below * pick(high_slope)], moved

    def charge(self, lines: Arrays, error: Tensor | None, box: Box, *boxes: Box) -> Tensor | None:
        """Each line is computed with a few roundings of its own scale, and summed over the node."""
        low_slope, low, high_slope, high = lines
        steepest = torch.maximum(low_slope.abs(), high_slope.abs()).clamp_min(1)
        own = 4 * gamma(MANY, FINE) * (steepest * largest(boxes[0]) + low.abs() + high.abs())
        return own if error is None else own + error


def largest(box: Box) -> Tensor:
    """max |x| on a box."""
    return torch.maximum(box[0].abs(), box[1].abs())
