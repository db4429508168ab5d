"""Batched augmentation on the device, one independent stream of draws per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustcli.config.schema import Augment
from robustcli.core.random import RowRandom


def augment(x: Tensor, rng: RowRandom, spec: Augment) -> Tensor:
    """x'[c, i, j] = pad(x)[c, i + dy, m(j) + dx],  m(j) = j or W - 1 - j with probability 1/2 each.

    Zero padding of `spec.crop` pixels, a random window of the old size, then a mirror left-right when `spec.flip`.
    dy, dx are uniform on 0 … 2 crop; every image draws from its own stream, so the batch does not matter.

    Args:
        x: pixels [B, C, H, W] in [0, 1], any device.
        rng: streams of the B images on the same device (stream "augment", with the epoch in its key).
        spec: crop >= 0 in pixels, flip.

    Returns:
        pixels [B, C, H, W] in [0, 1], bitwise a function of (image, seed, epoch, sample id); `x` itself when there is nothing to do.

    Source: the padded crop and mirror of He et al., CVPR 2016, section 4.2.
    """
    if spec.crop == 0 and not spec.flip:
        return x
    batch, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device).expand(batch, height)
    columns = torch.arange(width, device=x.device).expand(batch, width)
    # The crop always draws first, so adding a flip does not change the windows.
    if spec.crop:
        shift = rng.integers(0, 2 * spec.crop + 1, (2,))
        x = functional.pad(x, (spec.crop,) * 4)
    else:
        shift = torch.zeros(batch, 2, dtype=torch.int64, device=x.device)
    if spec.flip:
        mirror = rng.integers(0, 2, (1,)).bool()
        columns = torch.where(mirror, width - 1 - columns, columns)
    rows, columns = rows + shift[:, :1], columns + shift[:, 1:]
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
