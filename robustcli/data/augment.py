"""Batched augmentation on the device, one independent stream of draws per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustcli.config.sections import Augment, DataConfig
from robustcli.core.random import RowRandom
from robustcli.core.warp import warp
from robustcli.errors import ConfigError


def augment(x: Tensor, rng: RowRandom, spec: Augment) -> Tensor:
    """x'[c, i, j] = pad(x)[c, i + dy, m(j) + dx],  m(j) = j or W - 1 - j, then turned, grown and shifted.

    The border is `spec.crop` pixels of zeros. dy and dx are uniform on 0 to 2 crop: a random window of the
    old size. With `spec.flip` each of the two m has probability 1/2; without, m(j) = j. Then, when asked for,
    `core.warp.warp` with an angle uniform in +-rotate degrees, a log growth uniform in +-log(1 + scale) and
    shifts uniform in +-translate pixels. Every image draws from its own stream, so the batch does not matter.

    Args:
        x: pixels [B, C, H, W] in [0, 1], any device.
        rng: streams of the B images on the same device (stream "augment", with the epoch in its key).
        spec: crop >= 0 in pixels, flip, rotate in degrees, scale as a share, translate in pixels.

    Returns:
        pixels [B, C, H, W] in [0, 1]; `x` itself when there is nothing to do. Without rotate, scale and
        translate the bits are a function of (image, seed, epoch, sample id); with them, also of the device.

    Source: the padded crop and mirror of He et al., CVPR 2016, section 4.2.
    """
    if spec.crop or spec.flip:
        x = _window(x, rng, spec)
    if spec.posed:
        x = _posed(x, rng.restart(1), spec)  # draws of their own: a pose does not change the windows
    return x


def _window(x: Tensor, rng: RowRandom, spec: Augment) -> Tensor:
    """Cropped and mirrored."""
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
    """Turned, grown and shifted."""
    angle, grow, right, down = rng.uniform((4,)).mul_(2).sub_(1).unbind(1)
    height, width = x.shape[2:]
    turn, shift = math.radians(float(spec.rotate)), float(spec.translate)
    size = (grow * math.log1p(float(spec.scale))).exp()
    return warp(x, angle * turn, right * (shift / width), down * (shift / height), size).clamp_(0, 1)


def choose_augment(config: DataConfig, usual: tuple[int, bool] | None, side: int) -> tuple[Augment, str]:
    """The augmentation that data.augment asks for, and a note that says which.

    Args:
        config: the data section.
        usual: (crop, flip), what `auto` means for this data set; None where the data set does not say.
        side: of the square images, pixels.

    Raises:
        ConfigError: the crop is as large as the image.
    """
    chosen, source = config.augment, "config"
    if chosen == "none":
        chosen = Augment(crop=0, flip=False)
    elif chosen == "auto":
        crop, flip = usual or _usual(side)
        chosen, source = Augment(crop=min(crop, side // 4), flip=flip), "auto"
    if chosen.crop >= side:
        what = f"data.augment.crop={chosen.crop} pads more than the image of {side} pixels"
        raise ConfigError(what, hint="4 is usual for 32 pixels")
    return chosen, f"augment: {_described(chosen)} ({source})"


def _usual(side: int) -> tuple[int, bool]:
    """(crop, flip) of a data set that does not say: large images are only mirrored."""
    if side <= 64:
        return 4, True
    return 0, True


def _described(spec: Augment) -> str:
    if spec.idle:
        return "none"
    words = [f"crop {spec.crop}", "flip" if spec.flip else "no flip"]
    sizes = {name: getattr(spec, name) for name in ("rotate", "scale", "translate")}
    return ", ".join([*words, *(f"{name} {size:g}" for name, size in sizes.items() if size)])
