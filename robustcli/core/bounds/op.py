"""What one operation of a network knows of bounds: its value, its rule for boxes, its rule for lines.

Tensors have the batch in front. A box is a pair (lower, upper) of the same shape, and holds elementwise. The
coefficients `a` of a backward pass have one row per bound that is wanted: [Q, *shape of the node].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Box: TypeAlias = tuple[Tensor, Tensor]
Weights: TypeAlias = tuple[Tensor, ...]
Shape: TypeAlias = tuple[int, ...]

UNIT = 2.0**-24  #: unit roundoff of float32: relative error of one rounded operation
FINE = 2.0**-53  #: the same of float64
TINY = 2.0**-126  #: below it float32 may flush to zero


def gamma(terms: int, unit: float = UNIT) -> float:
    """n u / (1 - n u): relative error of n rounded operations in any order (Higham, SIAM 2002, 3.1)."""
    return terms * unit / (1 - terms * unit)


@dataclass(frozen=True)
class Lines:
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

        A backward pass sums `spread` products in float64, and the centre and radius of a box `terms` of them:
        both errors are shares of the same scale.
        """
        if self.exact:
            return None
        own = gamma(self.terms + self.spread + 8, FINE)
        return (gamma(self.terms + 2) * (1 + 2.0**-10) + 4 * own) * self.size(weights, *boxes) + (
            self.terms + 2
        ) * TINY

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


def largest(box: Box) -> Tensor:
    """max |x| on a box."""
    return torch.maximum(box[0].abs(), box[1].abs())
