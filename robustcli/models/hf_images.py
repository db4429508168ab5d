"""What a `preprocessor_config.json` does to images, as far as a network must know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustcli.errors import ConfigError

_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_WARPED = 384  # from this side on, ConvNeXt's processor takes the whole image
_MANY = 64


@dataclass(frozen=True)
class Preparation:
    """resize -> crop -> (255 f x - mean) / std, of pixels x in [0, 1].

    Args:
        resize: (height, width) that an image is resized to; None leaves it.
        crop: (height, width) of the middle that is taken; None takes all.
        mode: interpolation, always with antialiasing.
        mean, std: in pixel units of [0, 1], the factor f of the file put into them.
    """

    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) that the network gets; None where any is left as it is."""
        return self.crop or self.resize

    def shape(self, x: Tensor) -> Tensor:
        """Images as the network takes them; those of its size are taken as they are."""
        if self.size is None or tuple(x.shape[2:]) == self.size:
            return x
        if self.resize is not None:
            antialias = self.mode != "nearest"
            align = False if antialias else None
            x = F.interpolate(x, self.resize, mode=self.mode, align_corners=align, antialias=antialias)
        if self.crop is None:
            return x
        height, width = self.crop
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]


def preparation(stated: Mapping[str, Any], channels: int, where: str) -> Preparation:
    """What the file asks for. Raises ConfigError for what is no size, number or known interpolation."""
    try:
        return _read(stated, channels)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"not understood: {error}", where=where, hint="mend the file") from error


def _read(stated: Mapping[str, Any], channels: int) -> Preparation:
    resize, crop = _sizes(stated)
    if resize and crop and (crop[0] > resize[0] or crop[1] > resize[1]):
        raise ValueError(f"the crop {crop} is larger than the image {resize}")
    factor = _number(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 1.0
    mean, std = (0.0,) * channels, (1.0,) * channels
    if stated.get("do_normalize", "image_mean" in stated):
        mean, std = _numbers(stated["image_mean"], channels), _numbers(stated["image_std"], channels)
    unit = 255 * factor
    if not 0 < unit < float("inf"):
        raise ValueError(f"rescale_factor {factor}")
    number = int(stated.get("resample", 2))
    if number not in _RESAMPLE:
        raise ValueError(f"resample {number}; known: {', '.join(map(str, _RESAMPLE))}")
    by_unit = tuple(tuple(v / unit for v in values) for values in (mean, std))
    return Preparation(resize, crop, _RESAMPLE[number], by_unit[0], by_unit[1])


def _sizes(stated: Mapping[str, Any]) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(resize, crop) of square images."""
    resize = crop = None
    if stated.get("do_center_crop", "crop_size" in stated):
        crop = _square(stated["crop_size"])
    if stated.get("do_resize", "size" in stated):
        resize = _square(stated["size"])
        share = stated.get("crop_pct")
        if share is not None and resize[0] < _WARPED and crop is None:
            crop, side = resize, int(resize[0] / _number(share))
            resize = side, side
    return resize, crop


def _square(size: Any) -> tuple[int, int]:
    """(height, width) that a square image gets by ``224``, ``{shortest_edge}`` or ``{height, width}``."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        pair = (size["height"], size["width"]) if edge is None else (edge, edge)
    else:
        pair = (size, size)
    sides = int(pair[0]), int(pair[1])
    if min(sides) < 1 or max(sides) > 1 << 16:
        raise ValueError(f"size {size}")
    return sides


def _numbers(values: Any, channels: int) -> tuple[float, ...]:
    given = values if isinstance(values, (list, tuple)) else [values] * channels
    if len(given) > _MANY:
        raise ValueError(f"{len(given)} channels")
    return tuple(_number(value) for value in given)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    return float(value)
