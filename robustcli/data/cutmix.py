"""CutMix on the device: each image gets a window of another image of the batch, and a share of its label."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.random import RowRandom


def cutmix(
    x: Tensor,
    y: Tensor,
    rng: RowRandom,
    num_classes: int,
    *,
    alpha: Annotated[float, Gt(0)] = 1.0,
    probability: Annotated[float, Ge(0), Le(1)] = 1.0,
) -> tuple[Tensor, Tensor]:
    """x'_i = x_j in the window of row i, else x_i;  q_i = (1 - a) onehot(y_i) + a onehot(y_j).

    a = (area of the window) / (H W).

    The window has floor(H s) x floor(W s) pixels, s = sqrt(1 - lambda) with lambda ~ Beta(alpha, alpha) for
    each row. Its centre is uniform on the image. The border of the image cuts it, and the area is that of the
    rest. The partner j follows i in the order of random keys, so the partners are one cycle through the
    batch: with B > 1 no image mixes with itself, and every image is pasted at most once.

    Args:
        x: pixels [B, C, H, W] in [0, 1], any device.
        y: labels int64 [B] in [0, K).
        rng: streams of the B images on the same device (stream "cutmix", with the epoch in its key).
        num_classes: K, >= 1.
        alpha: > 0, no unit. 1 draws lambda uniformly, values near 0 paste nothing or all of the image, large
            values paste half of it.
        probability: share of the rows that are mixed, in [0, 1]. The others keep their pixels and get a
            one-hot label.

    Returns:
        x' [B, C, H, W] in [0, 1], a new tensor, and q float32 [B, K], whose rows sum to 1. Row i is a
        function of (seed, epoch, its id, the ids in its batch), not of the order of the batch. Its bits are
        the same on every device for alpha 1, and on one device for another alpha.

    Raises:
        ValueError: alpha, probability, num_classes or the number of labels out of range.

    Source: Yun et al., ICCV 2019, arXiv:1905.04899, section 3 and algorithm A1. Windows of odd size lose a
    pixel there, but not here.
    """
    _check_arguments(x, y, num_classes, alpha, probability)
    # Every draw is made whatever the parameters are: another probability leaves the windows as they were.
    partner = _partners(rng)
    mixed = rng.uniform() < probability
    inside, area = _window(rng, x.shape[2], x.shape[3], alpha, mixed)
    pixels = x.shape[2] * x.shape[3]
    whole = torch.full((), float(pixels), device=x.device)  # a tensor: see `split.unit`
    own, other = ((pixels - area) / whole)[:, None], (area / whole)[:, None]
    classes = torch.arange(num_classes, device=y.device)
    q = (y[:, None] == classes) * own + (y[partner, None] == classes) * other
    return torch.where(inside[:, None], x[partner], x), q


def _check_arguments(x: Tensor, y: Tensor, num_classes: int, alpha: float, probability: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be finite and > 0, got {alpha}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    if num_classes < 1 or len(y) != len(x):
        raise ValueError(
            "cutmix needs K >= 1 classes and one label per image, "
            f"got K = {num_classes}, {len(y)} labels and {len(x)} images"
        )


def _partners(rng: RowRandom) -> Tensor:
    """int64 [B]: the row that follows each row in the order of random 44-bit keys, as a cycle."""
    high, low = rng.integers(0, 2**22, (2,)).unbind(1)
    order = torch.argsort((high << 22) | low, stable=True)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def _window(rng: RowRandom, height: int, width: int, alpha: float, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that are pasted, bool [B, H, W], and their number, int64 [B]; none where not `mixed`."""
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
    """float32 [B] ~ Beta(alpha, alpha):  (1 + c / sqrt(c^2 + 1 / s)) / 2.

    c = cos(2 pi v),  s = u^(-1 / alpha) - 1.

    u and v are uniform: the method is exact and rejects nothing, so it takes two draws of each row. With
    alpha = 1 it gives v itself.

    Source: Devroye, Random variate generation in one line of code, 1996: Bailey's polar method for Student's
    t with 2 alpha degrees of freedom.
    """
    u, v = rng.uniform((2,)).unbind(1)
    if alpha == 1:
        return v.clone()
    # 1 - u is in (0, 1]; below 1e-30 float32 would divide zero by zero, and the answer is 0 or 1 long before.
    # abs, not a minus: no -0, whose inverse is -inf.
    s = torch.expm1(torch.log(1 - u).abs() / max(alpha, 1e-30))
    c = torch.cos(v * (2 * math.pi))
    return (1 + c / torch.sqrt(c.square() + 1 / s)) / 2
