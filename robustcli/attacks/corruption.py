"""Common corruptions: noise, blur, light and lost resolution, at five severities."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional as F

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.registry import attacks

Type = Literal["gaussian_noise", "shot_noise", "gaussian_blur", "brightness", "contrast", "pixelate"]
# One number per severity, 1 to 5. CIFAR-10-C's up to 64 pixels a side, ImageNet-C's above.
_SMALL: dict[Type, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}
_LARGE: dict[Type, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
}
_EXACT_RATE = 10.0  # up to here Poisson counts are exact
_EXACT_COUNTS = 40  # P(count > 40) is below 1e-12 at that rate


@attacks.register(
    "corruption",
    kind="unbounded",
    norms=("linf", "l2", "l1"),
    needs="decisions",
    precision="bf16",
    passes=lambda given, classes, norm: 1,
    use="weather and cameras instead of an adversary",
    deterministic=False,
)
def corruption(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    type: Type = "gaussian_noise",
    severity: Annotated[int, Ge(1), Le(5)] = 3,
) -> Tensor:
    """x_adv = clip(c_s(x)), c_s a common corruption of severity s.

    Nothing is searched for, and no norm bounds the change. The number of each severity, up to 64 pixels a
    side (CIFAR-10-C) | above (ImageNet-C):
        gaussian_noise  standard deviation in pixel units     .04 .06 .08 .09 .10    | .08 .12 .18 .26 .38
        shot_noise      photons of a white pixel              500 250 100 75 50      | 60 25 12 5 3
        gaussian_blur   standard deviation in pixels          .4 .6 .7 .8 1          | 1 2 3 4 6
        brightness      added to the largest channel (HSV's value)  .05 .1 .15 .2 .3 | .1 .2 .3 .4 .5
        contrast        factor around each channel's mean     .75 .5 .4 .3 .15       | .4 .3 .2 .1 .05
        pixelate        resolution kept                       .95 .9 .85 .75 .65     | .6 .5 .4 .3 .25

    Args:
        oracle: sees the corrupted image; holds one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: its pixel box; norm and radius are ignored.
        type: which corruption.
        severity: 1 (weak) to 5 (strong).

    Returns:
        x_adv [B, C, H, W], detached, in the pixel box; cost: one forward pass (none in training). Where the
        caller keeps the worst point met, a row that the corruption does not break may come back clean.

    Raises:
        ValueError: severity outside 1 to 5, unknown type.

    Source: Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261.
    """
    if type not in _SMALL or severity not in range(1, 6):
        rule = f"type must be one of {', '.join(_SMALL)} and severity 1, 2, 3, 4 or 5"
        raise ValueError(f"{rule}, got type {type!r}, severity {severity}")
    amounts = _SMALL if max(x.shape[2:]) <= 64 else _LARGE
    corrupted = _corrupt(x, type, amounts[type][severity - 1], oracle.rng)
    return oracle.result(corrupted.clamp_(ball.low, ball.high))


def _corrupt(x: Tensor, type: Type, amount: float, rng: RowRandom) -> Tensor:
    """The corrupted image [B, C, H, W] before clipping, a new tensor; amount: the number of its severity."""
    if type == "gaussian_noise":
        return x + amount * rng.normal(tuple(x.shape[1:])).to(x.dtype)
    if type == "shot_noise":
        return _poisson(x * amount, rng) / amount
    if type == "gaussian_blur":
        return _blur(x, amount)
    if type == "brightness":
        # Hue and saturation stay, so all channels grow by the factor of the largest; black turns grey.
        value = x.amax(1, keepdim=True)
        brighter = (value + amount).clamp_max(1.0)
        return torch.where(value > 0, x * (brighter / value.clamp_min(torch.finfo(x.dtype).tiny)), brighter)
    if type == "contrast":
        mean = x.mean((2, 3), keepdim=True)
        return (x - mean) * amount + mean
    return _bin_means(x.shape[2], amount, x) @ x @ _bin_means(x.shape[3], amount, x).T


def _bin_means(side: int, share: float, like: Tensor) -> Tensor:
    """[side, side]: the matrix that replaces each of `side` pixels by the mean of its bin.

    The bins are int(side * share) runs of neighbours, 1 at least. The image is reduced to one pixel per bin,
    and enlarged again.
    """
    bins = (2 * torch.arange(side, device=like.device) + 1) * max(1, int(side * share)) // (2 * side)
    same = (bins[:, None] == bins[None, :]).to(like.dtype)
    return same / same.sum(1, keepdim=True)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """x [B, C, H, W] convolved with N(0, sigma^2), sigma in pixels, cut at 4 sigma.

    Outside the image the border pixels are repeated.
    """
    radius = int(4 * sigma + 0.5)
    along = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weight = along.div_(sigma).square_().mul_(-0.5).exp_()
    weight = weight / weight.sum()
    image = F.pad(x.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")
    along_rows = F.conv2d(image, weight.reshape(1, 1, 1, -1))
    return F.conv2d(along_rows, weight.reshape(1, 1, -1, 1)).reshape(x.shape)


def _poisson(rate: Tensor, rng: RowRandom) -> Tensor:
    """Poisson counts [B, C, H, W] with means `rate` >= 0.

    Up to rate 10 a count is the exact inverse of the distribution at a uniform number. Above, it is a normal
    number with the correction of Cornish and Fisher, rounded.
    """
    tail = tuple(rate.shape[1:])
    u, z = rng.uniform(tail).to(rate.dtype), rng.normal(tail).to(rate.dtype)
    low = rate.clamp_max(_EXACT_RATE)
    term = low.neg().exp_()
    below, count = term.clone(), torch.zeros_like(rate)
    for k in range(1, _EXACT_COUNTS + 1):
        count += u >= below
        term = term * low / k
        below += term
    many = (rate + z * rate.sqrt() + (z.square() - 1) / 6).round_().clamp_min_(0)
    return torch.where(rate <= _EXACT_RATE, count, many)
