"""How alike two images are to the eye: pixels at a small size, mirrored and shifted by a pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 32  # images are compared at this size, at most
_COARSE = 8  # and looked for at this one
_SMOOTHED = 16  # from this side on, differences are averaged over 2 x 2 pixels, which quietens noise
_SAME = 1 / 1020  # in pixel units: a quarter of a step of 8 bits
_PAIRS = 512  # compared at a time


def small(x: Tensor) -> Tensor:
    """Images float [b, C, H, W] at the size of the comparison, by averages over areas."""
    if max(x.shape[2:]) <= _SIDE:
        return x.float()
    return F.adaptive_avg_pool2d(x.float(), _SIDE)


def coarse(x: Tensor) -> Tensor:
    """float32 [b, d]: the image at 8 x 8 pixels at most."""
    reduced = small(x)
    if max(reduced.shape[2:]) > _COARSE:
        reduced = F.adaptive_avg_pool2d(reduced, _COARSE)
    return reduced.flatten(1)


def coarse_views(x: Tensor) -> Tensor:
    """float32 [b, v, d]: `coarse` of the images and their mirror images; of tiny ones also of shifted ones.

    In larger images a pixel is so little of 8 x 8 that a shift changes nothing.
    """
    steps = (-1, 0, 1) if min(x.shape[2:]) < _SMOOTHED else (0,)
    shifted = [x.roll((down, right), (2, 3)) for down in steps for right in steps]
    return torch.stack([coarse(view) for one in shifted for view in (one, one.flip(3))], 1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """float32 [n]: root of the mean squared difference of pairs of small images, in pixel units of [0, 1].

    The least over mirror images and shifts by up to one pixel to each side; 0 for the same image. Differences
    are averaged over 2 x 2 pixels. Shapes [n, C, H, W].
    """
    return torch.cat(
        [_apart(one, other) for one, other in zip(a.split(_PAIRS), b.split(_PAIRS), strict=True)]
        or [torch.zeros(0)]
    )


def _apart(a: Tensor, b: Tensor) -> Tensor:
    height, width = a.shape[2:]
    least = torch.full((len(a),), torch.inf, device=a.device)
    if min(height, width) < 4:
        return torch.minimum(_root(a - b), _root(a.flip(3) - b))
    inner = b[:, :, 1:-1, 1:-1]
    for view in (a, a.flip(3)):
        for down in range(3):
            for right in range(3):
                window = view[:, :, down : down + height - 2, right : right + width - 2]
                least = torch.minimum(least, _root(window - inner))
    return least


def _root(difference: Tensor) -> Tensor:
    if min(difference.shape[2:]) >= _SMOOTHED - 2:
        difference = F.avg_pool2d(difference, 2)
    return difference.square().mean((1, 2, 3)).sqrt()


def same(a: Tensor, b: Tensor) -> Tensor:
    """bool [n]: whether two images, or one and the mirror image of the other, differ in no pixel."""
    direct, mirrored = (_largest(view - b) for view in (a, a.flip(3)))
    return torch.minimum(direct, mirrored) <= _SAME


def _largest(difference: Tensor) -> Tensor:
    return difference.abs().amax((1, 2, 3))
