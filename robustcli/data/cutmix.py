"""CutMix, batched on the device: a window of every image comes from another image of its batch, and the label follows the area."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.random import RowRandom


def cutmix(
    x: Tensor, y: Tensor, rng: RowRandom, num_classes: int, *, alpha: Annotated[float, Gt(0)] = 1.0, probability: Annotated[float, Ge(0), Le(1)] = 1.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x'_i = x_j inside the window of row i, x_i outside;  q_i = (1 - a) onehot(y_i) + a onehot(y_j),  a = window area / (H W).

    lambda ~ Beta(alpha, alpha) per row; the window is floor(H sqrt(1 - lambda)) x floor(W sqrt(1 - lambda)) pixels around a centre uniform
    on the image, cut by its border, and `a` is the area that is left. The partner j follows i in the order of random keys, so the partners
    are one cycle through the batch: nobody mixes with itself (B > 1), every image is pasted at most once.

    Args:
        x: pixels [B, C, H, W] in [0, 1], any device.
        y: labels int64 [B] in [0, K).
        rng: streams of the B images on the same device (stream "cutmix", with the epoch in its key).
        num_classes: K, >= 1.
        alpha: > 0, no unit; 1 draws lambda uniformly, towards 0 nothing or all is pasted, large values paste half of the image.
        probability: share of the rows that are mixed, in [0, 1]; the others keep their pixels and get a one-hot label.

    Returns:
        x' [B, C, H, W] in [0, 1], a new tensor, and q float32 [B, K], rows sum to 1. Row i is a function of (seed, epoch, its id, the ids in
        its batch), not of the order of the batch; bitwise on every device for alpha 1, on one device for another alpha.

    Raises:
        ValueError: alpha, probability, num_classes or the number of labels out of range.

    Source: Yun et al., ICCV 2019, arXiv:1905.04899, section 3 and algorithm A1 (its odd windows lose a pixel, these do not).
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be finite and > 0, got {alpha}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    if num_classes < 1 or len(y) != len(x):
        raise ValueError(
            f"cutmix needs K >= 1 classes and one label per image, got K = {num_classes}, {len(y)} labels and {len(x)} images"
        )
    # Every draw is made whatever the parameters are, so that changing one of them leaves the others as they were.
    partner = _partners(rng)
    mixed = rng.uniform() < probability
    inside, area = _window(rng, x.shape[2], x.shape[3], alpha, mixed)
    pixels = x.shape[2] * x.shape[3]
    weights = torch.stack((pixels - area, area)) / torch.full(
        (), float(pixels), device=x.device
    )  # a tensor: see `split.unit`
    classes = torch.arange(num_classes, device=y.device)
    own, other = (
        (labels[:, None] == classes) * weight[:, None]
        for labels, weight in zip((y, y[partner]), weights, strict=True)
    )
    return torch.where(inside[:, None], x[partner], x), own + other


def _partners(rng: RowRandom) -> Tensor:
    """int64 [B]: the row that follows each one when the rows are sorted by a random key of 44 bits, the first following the last."""
    high, low = rng.integers(0, 2**22, (2,)).unbind(1)
    order = torch.argsort((high << 22) | low, stable=True)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def _window(rng: RowRandom, height: int, width: int, alpha: float, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, H, W], the pixels that are pasted, and their number int64 [B]; none where `mixed` (bool [B]) is false."""
    edges = []
    centres = (rng.integers(0, height), rng.integers(0, width))
    side = beta(rng, alpha).sqrt_()  # 1 - lambda has the distribution of lambda
    for size, centre in zip((height, width), centres, strict=True):
        length = (side * size).long() * mixed
        low = centre - length // 2
        edges.append((low.clamp(min=0), (low + length).clamp(max=size)))
    (top, bottom), (left, right) = edges
    area = (bottom - top).clamp_(min=0) * (right - left).clamp_(min=0)
    return _between(top, bottom, height)[:, :, None] & _between(left, right, width)[:, None, :], area


def _between(low: Tensor, high: Tensor, size: int) -> Tensor:
    """bool [B, size]: low <= index < high."""
    index = torch.arange(size, device=low.device)
    return (index >= low[:, None]) & (index < high[:, None])


def beta(rng: RowRandom, alpha: float) -> Tensor:
    """float32 [B] ~ Beta(alpha, alpha) = (1 + c / sqrt(c^2 + 1 / s)) / 2,  c = cos(2 pi v), s = u^(-1 / alpha) - 1, u and v uniform.

    Exact, without rejection, so it takes two draws of each row. With alpha = 1 it is the uniform v itself.
    Source: Devroye, Random variate generation in one line of code, 1996 (Bailey's polar method for Student's t with 2 alpha degrees).
    """
    u, v = rng.uniform((2,)).unbind(1)
    if alpha == 1:
        return v.clone()
    # 1 - u is in (0, 1]; below 1e-30 float32 would divide zero by zero, and the answer is 0 or 1 long before.
    s = torch.expm1(
        torch.log(1 - u).abs() / max(alpha, 1e-30)
    )  # abs, not a minus: no -0, whose inverse is -inf
    c = torch.cos(v * (2 * math.pi))
    return (1 + c / torch.sqrt(c.square() + 1 / s)) / 2
