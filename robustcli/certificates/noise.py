"""Noise that smooths a classifier, and the radius that it proves.

The smoothed classifier answers with the most frequent class under noise. With p > 1/2 for the class at x, it
is the class for all changes shorter than radius(p).

No draw is clipped to [0, 1]. The proofs need that the noise at x + delta is the noise at x, moved by delta;
the networks were trained on such draws; and a classifier that needs a clip may have it inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import torch
from torch import Tensor

_normal = NormalDist()


@dataclass(frozen=True)
class Noise:
    """One family of noise.

    Args:
        norm: what a radius is measured in: "l2", "l1" or "translation".
        unit: the unit of sigma and of a radius.
        draw: (x [C, H, W], rows, sigma, generator) -> float32 [rows, C, H, W], noisy copies of x.
        radius: (p, sigma) -> the radius that a class of chance p >= 1/2 proves; 0 at p = 1/2.
        chance: (radius, sigma) -> the p that proves this radius.
        source: the theorem.
    """

    norm: str
    unit: str
    draw: Callable[[Tensor, int, float, torch.Generator], Tensor]
    radius: Callable[[float, float], float]
    chance: Callable[[float, float], float]
    source: str


def _gaussian(x: Tensor, rows: int, sigma: float, generator: torch.Generator) -> Tensor:
    """x + sigma * N(0, I)."""
    noise = torch.randn(rows, *x.shape, generator=generator, device=x.device)
    return noise.mul_(sigma).add_(x)


def _gaussian_radius(p: float, sigma: float) -> float:
    """sigma * Phi^-1(p), infinite at p = 1, which no sample of draws proves."""
    return sigma * _normal.inv_cdf(p) if p < 1 else math.inf


def _gaussian_chance(radius: float, sigma: float) -> float:
    return _normal.cdf(radius / sigma)


def _uniform(x: Tensor, rows: int, sigma: float, generator: torch.Generator) -> Tensor:
    """x + U(-half, half) for each pixel, of standard deviation sigma."""
    half = _half_width(sigma)
    noise = torch.rand(rows, *x.shape, generator=generator, device=x.device)
    return noise.mul_(2 * half).sub_(half).add_(x)


def _half_width(sigma: float) -> float:
    """U(-half, half) has the standard deviation half / sqrt 3."""
    return math.sqrt(3) * sigma


def _uniform_radius(p: float, sigma: float) -> float:
    """2 half (p - 1/2).

    Two cubes of side 2 half that are delta apart share prod(1 - |delta_i| / 2 half) >= 1 - |delta|_1 / 2 half
    of their volume, so that the chance of a class falls by |delta|_1 / 2 half at most.
    """
    return 2 * _half_width(sigma) * (p - 0.5)


def _uniform_chance(radius: float, sigma: float) -> float:
    return 0.5 + radius / (2 * _half_width(sigma))


def _translation(x: Tensor, rows: int, sigma: float, generator: torch.Generator) -> Tensor:
    """x moved cyclically by round(sigma * N(0, I_2)) whole pixels."""
    height, width = x.shape[-2:]
    moves = torch.randn(rows, 2, generator=generator, device=x.device).mul_(sigma).round_().long()
    down = (torch.arange(height, device=x.device) - moves[:, :1]) % height
    right = (torch.arange(width, device=x.device) - moves[:, 1:]) % width
    return x[:, down[:, :, None], right[:, None, :]].movedim(0, 1).contiguous()


#: name -> the noise.
NOISES: Final[dict[str, Noise]] = {
    "gaussian": Noise(
        "l2",
        "pixel values in [0, 1]",
        _gaussian,
        _gaussian_radius,
        _gaussian_chance,
        "Cohen et al., ICML 2019, arXiv:1902.02918, Theorem 1",
    ),
    "uniform": Noise(
        "l1",
        "pixel values in [0, 1]",
        _uniform,
        _uniform_radius,
        _uniform_chance,
        "Yang et al., ICML 2020, arXiv:2002.08118",
    ),
    "translation": Noise(
        "translation",
        "pixels of displacement, sqrt(dx^2 + dy^2) of whole dx and dy, cyclic",
        _translation,
        _gaussian_radius,
        _gaussian_chance,
        "Li et al. (TSS), CCS 2021, arXiv:2002.12398, resolvable transformations",
    ),
}
