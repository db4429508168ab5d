"""Batched augmentation on the device, one independent stream of draws per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustcli.config.sections import Augment
from robustcli.core.random import RowRandom
from robustcli.core.warp import warp


def augment(x: Tensor, rng: RowRandom, spec: Augment) -> Tensor:
    """x'[c, i, j] = pad(x)[c, i + dy, m(j) + dx],  m(j) = j or W - 1 - j with probability 1/2 each, then turned, grown and shifted.

    Zero padding of `spec.crop` pixels, a random window of the old size, then a mirror left-right when `spec.flip`; dy, dx are uniform on
    0 … 2 crop. Then, when asked for, `core.warp.warp` with angle uniform in +-rotate degrees, log grow in +-log(1 + scale), and shifts in
    +-translate pixels. Every image draws from its own stream, so the batch does not matter.

    Args:
        x: pixels [B, C, H, W] in [0, 1], any device.
        rng: streams of the B images on the same device (stream "augment", with the epoch in its key).
        spec: crop >= 0 in pixels, flip, rotate in degrees, scale as a share, translate in pixels.

    Returns:
        pixels [B, C, H, W] in [0, 1], bitwise a function of (image, seed, epoch, sample id), and where images are turned, grown or shifted
        between pixels also of the device; `x` itself when there is nothing to do.

    Source: the padded crop and mirror of He et al., CVPR 2016, section 4.2.
    """
    if spec.crop or spec.flip:
        x = _window(x, rng, spec)
    return (
        _posed(x, rng.restart(1), spec) if spec.posed else x
    )  # draws of their own: a pose does not change the windows


def _window(x: Tensor, rng: RowRandom, spec: Augment) -> Tensor:
    batch, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device).expand(batch, height)
    columns = torch.arange(width, device=x.device).expand(batch, width)
    if spec.crop:  # draws before the flip, so that a flip does not change the windows
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


def _posed(x: Tensor, rng: RowRandom, spec: Augment) -> Tensor:
    angle, grow, right, down = rng.uniform((4,)).mul_(2).sub_(1).unbind(1)
    height, width = x.shape[2:]
    turn, shift = math.radians(float(spec.rotate)), float(spec.translate)
    return warp(
        x,
        angle * turn,
        right * (shift / width),
        down * (shift / height),
        (grow * math.log1p(float(spec.scale))).exp(),
    ).clamp_(0, 1)
