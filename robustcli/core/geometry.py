"""Threat geometry: a norm ball of radius eps around each image, cut by the pixel box [low, high].

A norm is defined by four things (distance, projection, random point, steepest direction); an attack uses only these, so
a new norm costs no new attack. All tensors are pixels [B, C, H, W]; eps is in pixel units of [0, 1] (8/255, never 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustcli.core.random import RowRandom

Norm = Literal["linf", "l2", "l1"]
Start = Literal["uniform", "gaussian", "bernoulli", "zero"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
_TINY = 1e-12


@dataclass(frozen=True)
class Ball:
    """{z : ||z - x||_p <= eps, low <= z <= high}.

    Args:
        norm: "linf", "l2" or "l1".
        eps: radius in pixel units of [0, 1], >= 0.
        low, high: pixel box.

    Raises:
        ValueError: unknown norm, negative or non-finite eps, empty box.
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(NORMS)}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be finite and >= 0, got {self.eps}")
        if not self.low < self.high:
            raise ValueError(f"empty pixel box [{self.low}, {self.high}]")

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """float64 [B]: ||z - x||_p per row, on the CPU where the device has no float64."""
        if x.device.type == "mps":
            x, z = x.cpu(), z.cpu()
        d = (z.double() - x.double()).flatten(1)
        if self.norm == "linf":
            return d.abs().amax(1) if d.shape[1] else d.new_zeros(len(d))
        length: Tensor = torch.linalg.vector_norm(d, ord=2 if self.norm == "l2" else 1, dim=1)
        return length

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """bool [B]: z finite, in the box and within eps * (1 + 1e-6) plus one unit in the last place of a float32 pixel sum."""
        flat = z.flatten(1)
        slack = (
            2.0**-24
            * max(abs(self.low), abs(self.high))
            * (1 if self.norm == "linf" else math.sqrt(flat.shape[1]) if self.norm == "l2" else flat.shape[1])
        )
        inside = (
            self.distance(x, z).to(z.device if z.device.type != "mps" else "cpu")
            <= self.eps * (1 + 1e-6) + slack
        )
        boxed = (torch.isfinite(flat) & (flat >= self.low) & (flat <= self.high)).all(1)
        return inside.to(boxed.device) & boxed

    def project(self, x: Tensor, z: Tensor, *, clip: bool = True) -> Tensor:
        """A point of the ball and the box near z; for linf and l1 the nearest one (Euclidean), for l2 scaled, then boxed.

        clip=False keeps only the box (N-FGSM's noise may leave the ball). eps = 0 gives x back bitwise.
        """
        if not clip:
            return z.clamp(self.low, self.high)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(z, x - self.eps), x + self.eps).clamp_(self.low, self.high)
        if self.norm == "l2":
            d = z - x
            length = torch.linalg.vector_norm(d.flatten(1), dim=1)
            scale = (self.eps / length.clamp_min(_TINY)).clamp_max_(1.0)
            return (x + d * column(scale, d)).clamp_(self.low, self.high)
        return x + self._shrink_l1(x, z - x)

    def _shrink_l1(self, x: Tensor, d: Tensor) -> Tensor:
        """argmin ||u - d||_2 with ||u||_1 <= eps and x + u in the box: u = sign(d) clamp(|d| - t, 0, room).

        sum_i clamp(|d_i| - t, 0, room_i) falls piecewise linearly in t >= 0; its knots are sorted and t interpolated.
        Source: Duchi et al., ICML 2008; with the box Croce & Hein, ICML 2021, arXiv:2103.01208.
        """
        flat, size = d.flatten(1), d.abs().flatten(1)
        room = torch.where(flat > 0, self.high - x.flatten(1), x.flatten(1) - self.low).clamp_min(0)
        room = torch.minimum(room, size)
        # With t = |d| - room the coordinate leaves its cap (slope -1 begins), with t = |d| it reaches 0 (slope ends).
        knots, order = torch.cat((size - room, size), 1).sort(1)
        slope = torch.cat((torch.ones_like(size), -torch.ones_like(size)), 1).gather(1, order).cumsum(1)
        steps = torch.diff(knots, dim=1, prepend=knots.new_zeros(len(knots), 1))
        before = torch.cat((slope.new_zeros(len(slope), 1), slope[:, :-1]), 1)
        total = room.sum(1, keepdim=True)
        mass = total - (before * steps).cumsum(1)  # l1 length of u at each knot
        index = (
            (mass > self.eps).sum(1, keepdim=True).clamp_max(knots.shape[1] - 1)
        )  # first knot with mass <= eps
        share = (self.eps - mass.gather(1, index)).clamp_min(0) / before.gather(1, index).clamp_min(1)
        t = torch.where(
            total <= self.eps, torch.zeros_like(total), knots.gather(1, index) - share
        ).clamp_min_(0)
        u = torch.minimum((size - t).clamp_min_(0), room)
        # Float rounding of t may leave the sum a few units too long: one exact rescale.
        u = u * (self.eps / u.sum(1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)
        return (u * flat.sign()).reshape(d.shape)

    def or_origin(self, x: Tensor, z: Tensor) -> Tensor:
        """z [B, C, H, W] in the rows where the ball around x contains it, else x: the answer of an attack that may leave the radius."""
        return torch.where(column(self.contains(x, z), x), z, x)

    def random_point(self, x: Tensor, rng: RowRandom, *, radial: bool = False) -> Tensor:
        """Uniform in the norm ball, then cut by the box. l1: Barthe et al., Ann. Probab. 2005; l2: Gaussian direction, radius u^(1/d).

        radial=True draws the l2 radius uniform in [0, eps]: in many dimensions a ball is nearly all sphere, where a search that
        is projected back begins badly.
        """
        tail = tuple(x.shape[1:])
        if self.norm == "linf":
            noise = rng.uniform(tail).mul_(2).sub_(1).mul_(self.eps)
            return self.project(x, x + noise.to(x.dtype))
        d = math.prod(tail)
        if self.norm == "l2":
            noise = rng.normal(tail)
            length = torch.linalg.vector_norm(noise.flatten(1), dim=1).clamp_min_(_TINY)
            noise = noise * column(rng.uniform().pow(1.0 if radial else 1 / d) * self.eps / length, noise)
        else:
            # Exponential variables with one extra, divided by their sum, are uniform in the solid simplex.
            e = rng.uniform((d + 1,)).neg_().add_(1.0).log_().neg_()
            size = e[:, :d] / e.sum(1, keepdim=True).clamp_min(_TINY) * self.eps
            sign = rng.integers(0, 2, (d,)).mul_(2).sub_(1)
            noise = (size * sign).reshape(-1, *tail)
        return self.project(x, x + noise.to(x.dtype))

    def start(
        self, x: Tensor, kind: Start, rng: RowRandom, *, scale: float = 1.0, clip: bool = True
    ) -> Tensor:
        """Where a search begins: "zero" x; "uniform" in the ball of radius scale * eps (l2: in direction and radius); "gaussian" x + scale * N(0, 1);
        "bernoulli" x + scale * eps * s, s in {-1, +1} with equal chance (linf only: such a corner has no meaning in another norm).

        FGSM-RS is uniform with scale 1, N-FGSM uniform with scale 2 and clip=False, TRADES gaussian with scale 0.001, NuAT bernoulli with
        scale 0.5. Raises ValueError for an unknown start, or bernoulli outside linf.
        """
        if kind == "zero" or (self.eps == 0 and kind == "uniform"):
            return x.clone()
        if kind == "uniform":
            wide = self if scale == 1 else Ball(self.norm, self.eps * scale, self.low, self.high)
            return self.project(x, wide.random_point(x, rng, radial=True), clip=clip)
        if kind == "gaussian":
            return self.project(x, x + scale * rng.normal(tuple(x.shape[1:])).to(x.dtype), clip=clip)
        if kind == "bernoulli":
            if self.norm != "linf":
                raise ValueError(f"start: bernoulli is for linf, the ball is {self.norm}; use start: uniform")
            sign = rng.integers(0, 2, tuple(x.shape[1:])).mul_(2).sub_(1)
            return self.project(x, x + scale * self.eps * sign.to(x.dtype), clip=clip)
        raise ValueError(f"unknown start {kind!r}; known: uniform, gaussian, bernoulli, zero")

    def steepest(self, grad: Tensor, at: Tensor | None = None, *, share: float = 0.01) -> Tensor:
        """argmax <grad, v> with ||v||_p <= 1: linf sign(g); l2 g / ||g||; l1 spread evenly over the ceil(share * d) largest |g|.

        l1 with one coordinate is the exact maximiser but moves one pixel per step; a small share is usual (Tramer & Boneh,
        NeurIPS 2019, arXiv:1904.13000). With `at` [B, C, H, W] given, l1 passes over pixels that the box keeps from moving:
        a saturated largest pixel would be chosen again for ever (Croce & Hein, ICML 2021, arXiv:2103.01208). A row of zeros
        gives a row of zeros.
        """
        if self.norm == "linf":
            return grad.sign()
        flat = grad.flatten(1)
        if self.norm == "l2":
            # Scaled by the largest entry first: squares of tiny float32 gradients underflow.
            top = flat.abs().amax(1, keepdim=True)
            unit = flat / torch.where(top > 0, top, torch.ones_like(top))
            length: Tensor = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
            return (unit / length.clamp_min(_TINY)).reshape(grad.shape)
        if at is not None:
            where = at.flatten(1)
            flat = flat.masked_fill(
                ((flat > 0) & (where >= self.high)) | ((flat < 0) & (where <= self.low)), 0.0
            )
        k = max(1, math.ceil(share * flat.shape[1]))
        value, index = flat.abs().topk(k, dim=1)
        spread = torch.gather(flat.sign(), 1, index) * (value > 0) / k
        return torch.zeros_like(flat).scatter_(1, index, spread).reshape(grad.shape)

    def check_step(self, steps: int, step_size: float | None) -> float:
        """The step size: the given one, or 2.5 * eps / steps. Raises ValueError if steps < 1 or step_size <= 0."""
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size must be > 0, got {step_size}")
        return 2.5 * self.eps / steps if step_size is None else step_size


def column(v: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] for broadcasting over `like`."""
    return v.reshape(-1, *([1] * (like.dim() - 1)))
