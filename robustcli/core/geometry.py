"""Threat geometry: a norm ball of radius eps around each image, cut by the pixel box [low, high].

Four things depend on the norm: distance, projection, random point, steepest direction. An attack that uses
only these works with a new norm as it is. All images are pixels [B, C, H, W] in the box. eps is in pixel
units of [0, 1] (8/255, never 8). Under l0 it is a number of pixels, see `core.few`.

The file is long: a third of it says what a point of the ball is under each norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustcli.core.few import changed, keep_largest, random_pixels
from robustcli.core.random import RowRandom

Norm = Literal["linf", "l2", "l1", "l0"]
Start = Literal["uniform", "gaussian", "bernoulli", "zero"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}
_SHARE = 0.01  # of the pixels move in one l1 step
_TINY = 1e-12


@dataclass(frozen=True)
class Ball:
    """{z : ||z - x||_p <= eps, low <= z <= high}.

    Args:
        norm: "linf", "l2", "l1" or "l0".
        eps: radius in pixel units of [0, 1], >= 0; under l0 how many pixels may change, a whole number.
        low, high: pixel box, low < high.

    Raises:
        ValueError: unknown norm, negative or non-finite eps, a fraction of a pixel, empty box.
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
        if self.norm == "l0" and self.eps != int(self.eps):
            raise ValueError(f"eps under l0 is a whole number of pixels, got {self.eps}")
        if not self.low < self.high:
            raise ValueError(f"empty pixel box [{self.low}, {self.high}]")

    def scaled(self, share: float) -> Ball:
        """The ball of radius share * eps, share >= 0; under l0 a fraction of a pixel is dropped."""
        eps = self.eps * share
        if self.norm == "l0":
            eps = math.floor(eps)
        return replace(self, eps=eps)

    @property
    def reach(self) -> float:
        """A step that ends at the border of the ball: eps; under l0 far beyond the box."""
        if self.norm == "l0":
            return 1000 * (self.high - self.low)
        return self.eps

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """||z - x||_p per row: float64 [B] in pixel units, on the CPU where the device has no float64.

        l0: how many pixels differ, exactly.
        """
        if x.device.type == "mps":
            x, z = x.cpu(), z.cpu()
        if self.norm == "l0":
            return changed(x, z).double()
        d = (z.double() - x.double()).flatten(1)
        if not d.shape[1]:
            return d.new_zeros(len(d))
        length: Tensor = torch.linalg.vector_norm(d, ord=ORDER[self.norm], dim=1)
        return length

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """||z - x||_p <= eps * (1 + 1e-6) + slack, and z finite and in the box: bool [B].

        Rounding to float32 moves a pixel by at most r = 2^-24 * max(|low|, |high|). The slack is the norm of
        a vector whose d = C * H * W entries are all r: linf r, l2 r sqrt(d), l1 r d. Under l0 there is no
        slack: a pixel that rounding moved has changed.
        """
        flat = z.flatten(1)
        pixels = flat.shape[1]
        rounding = 2.0**-24 * max(abs(self.low), abs(self.high))
        slack = rounding * {"linf": 1, "l2": math.sqrt(pixels), "l1": pixels, "l0": 0}[self.norm]
        near = self.distance(x, z) <= self.eps * (1 + 1e-6) + slack
        boxed = (torch.isfinite(flat) & (flat >= self.low) & (flat <= self.high)).all(1)
        return near.to(boxed.device) & boxed

    def project(self, x: Tensor, z: Tensor, *, clip: bool = True) -> Tensor:
        """A point [B, C, H, W] of ball and box near z.

        linf, l1, l0: the point nearest to z in Euclidean distance. l2: z - x is shortened to length eps, then
        x + (z - x) is cut by the box. With eps = 0 the answer is x, bitwise.

        Args:
            x: clean pixels [B, C, H, W] in the box.
            z: any pixels [B, C, H, W].
            clip: false cuts z by the box alone, so that the answer may lie outside the ball (N-FGSM).
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
        if self.norm == "l0":
            return keep_largest(x, z, int(self.eps), self.low, self.high)
        return x + self._shrink_l1(x, z - x)

    def _shrink_l1(self, x: Tensor, d: Tensor) -> Tensor:
        """argmin_u ||u - d||_2 with ||u||_1 <= eps and x + u in the box: u = sign(d) clamp(|d| - t, 0, room).

        x, d, u: [B, C, H, W]. room_i is how far the box lets pixel i move in the direction of d_i. The length
        ||u||_1 = sum_i clamp(|d_i| - t, 0, room_i) falls piecewise linearly in t >= 0. Its knots are sorted,
        and the t where it equals eps is interpolated between two of them.

        Source: Duchi et al., ICML 2008; with the box Croce & Hein, ICML 2021, arXiv:2103.01208.
        """
        flat, size = d.flatten(1), d.abs().flatten(1)
        room = torch.where(flat > 0, self.high - x.flatten(1), x.flatten(1) - self.low).clamp_min(0)
        room = torch.minimum(room, size)
        # At t = |d| - room a pixel leaves its cap: slope -1 begins. At t = |d| it reaches 0: the slope ends.
        knots, order = torch.cat((size - room, size), 1).sort(1)
        slope = torch.cat((torch.ones_like(size), -torch.ones_like(size)), 1).gather(1, order).cumsum(1)
        gaps = torch.diff(knots, dim=1, prepend=knots.new_zeros(len(knots), 1))
        before = torch.cat((slope.new_zeros(len(slope), 1), slope[:, :-1]), 1)
        total = room.sum(1, keepdim=True)
        mass = total - (before * gaps).cumsum(1)  # at each knot
        last = knots.shape[1] - 1
        first = (mass > self.eps).sum(1, keepdim=True).clamp_max(last)  # knot with mass <= eps
        back = (self.eps - mass.gather(1, first)).clamp_min(0) / before.gather(1, first).clamp_min(1)
        t = knots.gather(1, first) - back
        t = torch.where(total <= self.eps, torch.zeros_like(total), t).clamp_min_(0)
        u = torch.minimum((size - t).clamp_min_(0), room)
        # Rounding of t may leave u a few units too long: one exact rescale.
        u = u * (self.eps / u.sum(1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)
        return (u * flat.sign()).reshape(d.shape)

    def or_origin(self, x: Tensor, z: Tensor) -> Tensor:
        """z in the rows where the ball around x contains it, else x; all [B, C, H, W].

        It turns the answer of an attack that may leave the ball into one inside it.
        """
        return torch.where(column(self.contains(x, z), x), z, x)

    def random_point(self, x: Tensor, rng: RowRandom, *, radial: bool = False) -> Tensor:
        """P(x + noise), noise uniform in the norm ball, P as in `project`: [B, C, H, W].

        linf: each pixel uniform in [-eps, eps]. l2: a Gaussian direction of length eps * u^(1/d), u uniform
        in [0, 1), d = C * H * W. l1: see `_noise_l1`. l0: eps pixels, chosen and coloured with equal chance.

        Args:
            x: clean pixels [B, C, H, W] in the box.
            rng: one random stream per row.
            radial: under l2 the length is eps * u, uniform in [0, eps]. In many dimensions nearly all of a
                ball lies close to its sphere, and a projected search begins badly there.

        Source: l1: Barthe et al., Ann. Probab. 2005.
        """
        if self.norm == "l0":
            return random_pixels(x, int(self.eps), self.low, self.high, rng)
        tail = tuple(x.shape[1:])
        if self.norm == "linf":
            noise = rng.uniform(tail).mul_(2).sub_(1).mul_(self.eps)
        elif self.norm == "l2":
            noise = self._noise_l2(tail, rng, radial)
        else:
            noise = self._noise_l1(tail, rng)
        return self.project(x, x + noise.to(x.dtype))

    def _noise_l2(self, tail: tuple[int, ...], rng: RowRandom, radial: bool) -> Tensor:
        """float32 [B, *tail], tail = (C, H, W), l2 length <= eps; `radial` as in `random_point`."""
        noise = rng.normal(tail)
        length = torch.linalg.vector_norm(noise.flatten(1), dim=1).clamp_min_(_TINY)
        radius = rng.uniform()
        if not radial:
            radius = radius.pow(1 / math.prod(tail))
        return noise * column(radius * self.eps / length, noise)

    def _noise_l1(self, tail: tuple[int, ...], rng: RowRandom) -> Tensor:
        """float32 [B, *tail], tail = (C, H, W), uniform with l1 length <= eps.

        Take d + 1 exponential variables, d = C * H * W. The first d of them, divided by the sum of all, are
        uniform in the simplex {s >= 0, sum s <= 1}. Random signs make the simplex a ball.
        """
        d = math.prod(tail)
        e = rng.uniform((d + 1,)).neg_().add_(1.0).log_().neg_()
        size = e[:, :d] / e.sum(1, keepdim=True).clamp_min(_TINY) * self.eps
        return (size * rng.signs((d,))).reshape(-1, *tail)

    def start(
        self, x: Tensor, kind: Start, rng: RowRandom, *, scale: float = 1.0, clip: bool = True
    ) -> Tensor:
        """P(x + noise): the point [B, C, H, W] where a search begins, P as in `project`.

        Args:
            x: clean pixels [B, C, H, W] in the box.
            kind: the noise.
                "zero": none.
                "uniform": uniform in the ball of radius scale * eps; under l2 `random_point` with `radial`,
                    under l0 with a fraction of a pixel dropped.
                "gaussian": scale * N(0, 1) per pixel, in pixel units.
                "bernoulli": scale * eps * s, s = -1 or +1 per pixel with equal chance; linf alone.
            rng: one random stream per row.
            scale: factor on the noise. FGSM-RS is uniform with 1, N-FGSM uniform with 2 and clip=False,
                TRADES gaussian with 0.001, NuAT bernoulli with 0.5.
            clip: as in `project`.

        Raises:
            ValueError: an unknown kind, or "bernoulli" under another norm than linf.
        """
        tail = tuple(x.shape[1:])
        if kind == "zero" or (self.eps == 0 and kind == "uniform"):
            return x.clone()
        if kind == "uniform":
            return self.project(x, self.scaled(scale).random_point(x, rng, radial=True), clip=clip)
        if kind == "gaussian":
            return self.project(x, x + scale * rng.normal(tail).to(x.dtype), clip=clip)
        if kind == "bernoulli":
            if what := start_mistake(kind, self.norm):
                raise ValueError(what)
            return self.project(x, x + scale * self.eps * rng.signs(tail).to(x.dtype), clip=clip)
        raise ValueError(f"unknown start {kind!r}; known: uniform, gaussian, bernoulli, zero")

    def steepest(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        """argmax_v <grad, v> with ||v||_p <= 1: linf sign(g); l2 g / ||g||; l1 only nearly; l0 see below.

        The exact l1 maximiser moves one pixel. Here the step is spread evenly over the 1 % of the pixels with
        the largest |g|, one at least. A row of zeros gives a row of zeros.

        Under l0 a pixel may go as far as the box, so no v is the longest. v is g / max |g|, and the
        projection chooses the pixels: the further one steps, the less it minds where they were before.

        Args:
            grad: g, [B, C, H, W], finite, any scale.
            at: the current point, pixels [B, C, H, W], or None; read under l1 alone. Pixels that the box
                keeps from moving are then left out: otherwise the largest would be chosen again for ever.

        Source: l1: Tramer & Boneh, NeurIPS 2019, arXiv:1904.13000; `at`: Croce & Hein, ICML 2021,
            arXiv:2103.01208.
        """
        if self.norm == "linf":
            return grad.sign()
        if self.norm == "l2":
            return _unit(grad)
        flat = grad.flatten(1)
        if self.norm == "l0":
            top = flat.abs().amax(1, keepdim=True)
            return (flat / torch.where(top > 0, top, torch.ones_like(top))).reshape(grad.shape)
        if at is not None:
            flat = flat.masked_fill(self._stuck(flat, at.flatten(1)), 0.0)
        k = max(1, math.ceil(_SHARE * flat.shape[1]))
        value, index = flat.abs().topk(k, dim=1)
        spread = torch.gather(flat.sign(), 1, index) * (value > 0) / k
        return torch.zeros_like(flat).scatter_(1, index, spread).reshape(grad.shape)

    def _stuck(self, push: Tensor, at: Tensor) -> Tensor:
        """bool [B, d]: pixels that the box keeps from moving; at: their values, push: > 0 is upwards."""
        return ((push > 0) & (at >= self.high)) | ((push < 0) & (at <= self.low))

    def check_step(self, steps: int, step_size: float | None) -> float:
        """The step size in pixel units: the given one, or 2.5 * eps / steps; under l0 four times the box.

        So far a step of l0 goes for the pixel of the largest |g|: it chooses pixels, and still minds where
        they were.

        Raises:
            ValueError: steps < 1 or step_size <= 0.
        """
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        if step_size is None:
            if self.norm == "l0":
                return 4 * (self.high - self.low)
            return 2.5 * self.eps / steps
        if not step_size > 0:
            raise ValueError(f"step_size must be > 0, got {step_size}")
        return step_size


def _unit(grad: Tensor) -> Tensor:
    """g / ||g||_2 per row [B, C, H, W]; a row of zeros stays.

    g is divided by max |g| first: without that, squares of tiny gradients underflow.
    """
    flat = grad.flatten(1)
    top = flat.abs().amax(1, keepdim=True)
    unit = flat / torch.where(top > 0, top, torch.ones_like(top))
    length: Tensor = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    return (unit / length.clamp_min(_TINY)).reshape(grad.shape)


def column(v: Tensor, like: Tensor) -> Tensor:
    """v [B] as [B, 1, 1, 1], to be broadcast over `like` [B, C, H, W]."""
    return v.reshape(-1, *([1] * (like.dim() - 1)))


def start_mistake(kind: str, norm: str) -> str:
    """Why a search in a ball of this norm cannot begin at such noise; "" where it can."""
    if kind != "bernoulli" or norm == "linf":
        return ""
    return f"start: bernoulli is for linf, the ball is {norm}; use start: uniform"
