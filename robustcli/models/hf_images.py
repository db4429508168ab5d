"""What a `preprocessor_config.json` does to images, as far as a network must know it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustcli.errors import ConfigError

_PLAIN = (
    *("", "Base", "Beit", "Bit", "CLIP", "ConvNext", "DeiT", "Gemma3", "MobileNetV1", "MobileNetV2"),
    *("Pvt", "Segformer", "Siglip", "TextNet", "ViT"),
)  # processors that do nothing but what `Preparation` says
_KINDS = (*_PLAIN, "EfficientNet", "Levit", "MobileViT", "PPLCNet", "PoolFormer")
_LEVIT = 256 / 224  # what LeViT's processor enlarges the stated edge by
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_WARPED = 384  # from this side on, ConvNeXt's processor takes the whole image
_MANY = 64


@dataclass(frozen=True)
class Preparation:
    """resize -> crop -> (255 f x - mean) / std -> channels, of pixels x in [0, 1].

    Args:
        resize: (height, width) that an image is resized to; None leaves it.
        crop: (height, width) of the middle that is taken; None takes all.
        mode: interpolation, always with antialiasing.
        mean, std: in pixel units of [0, 1], the factor f of the file put into them.
        reversed: whether the network gets the last channel first, as blue, green, red.
    """

    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reversed: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) that the network gets; None where any is left as it is."""
        return self.crop or self.resize

    def leaves(self, size: tuple[int, int]) -> bool:
        """Whether images of this size are shown to the network as they are, but for mean and std."""
        return not self.reversed and self.size in (None, size)

    def shape(self, x: Tensor) -> Tensor:
        """Images as the network takes them; those of its size are neither resized nor cropped."""
        x = self._sized(x)
        return x.flip(1) if self.reversed else x

    def _sized(self, x: Tensor) -> Tensor:
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
    """What the file asks for.

    Raises ConfigError for what is no size, number or known interpolation, and for a processor that does
    something else with images than those of `_KINDS`.
    """
    kind = _kind(stated)
    if kind not in _KINDS:
        raise ConfigError(
            f"what {kind}ImageProcessor does to images is not known here",
            where=where,
            hint="if it only resizes, crops, rescales and normalises, "
            'write "image_processor_type": "ViTImageProcessor"',
        )
    try:
        return _read(stated, kind, channels)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"not understood: {error}", where=where, hint="mend the file") from error


def _kind(stated: Mapping[str, Any]) -> str:
    """``ViT`` for ViTImageProcessor, ViTImageProcessorFast and ViTFeatureExtractor; "" where none is."""
    name = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or "")
    return re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)


def _read(stated: Mapping[str, Any], kind: str, channels: int) -> Preparation:
    resize, crop = _sizes(stated, kind)
    if resize and crop and (crop[0] > resize[0] or crop[1] > resize[1]):
        raise ValueError(f"the crop {crop} is larger than the image {resize}")
    number = int(stated.get("resample", 2))
    if number not in _RESAMPLE:
        raise ValueError(f"resample {number}; known: {', '.join(map(str, _RESAMPLE))}")
    mean, std = _scale(stated, kind, channels)
    backwards = kind == "PPLCNet" or bool(stated.get("do_flip_channel_order", kind == "MobileViT"))
    return Preparation(resize, crop, _RESAMPLE[number], mean, std, backwards)


def _scale(
    stated: Mapping[str, Any], kind: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) in pixel units. EfficientNet's processor may subtract 1, and divide by std once more."""
    factor = _number(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 1.0
    unit = 255 * factor
    if not 0 < unit < float("inf"):
        raise ValueError(f"rescale_factor {factor}")
    mean, std = (0.0,) * channels, (1.0,) * channels
    if stated.get("do_normalize", "image_mean" in stated) and kind != "MobileViT":
        mean, std = _numbers(stated["image_mean"], channels), _numbers(stated["image_std"], channels)
    below = float(bool(stated.get("rescale_offset")))
    again = (1.0,) * channels
    if stated.get("include_top", kind == "EfficientNet"):
        again = _numbers(stated["image_std"], channels)
    means = tuple((m + below) / unit for m in mean)
    return means, tuple(s * more / unit for s, more in zip(std, again, strict=True))


def _sizes(stated: Mapping[str, Any], kind: str) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(resize, crop) of square images."""
    resize = crop = None
    if stated.get("do_center_crop", "crop_size" in stated):
        crop = _square(stated["crop_size"])
    if stated.get("do_resize", "size" in stated):
        resize = _resized(stated, kind)
        share = stated.get("crop_pct")
        if share is not None and kind != "PoolFormer" and resize[0] < _WARPED and crop is None:
            crop, side = resize, int(resize[0] / _number(share))
            resize = side, side
    divisor = int(stated.get("size_divisor") or 1)
    if resize and any(side % divisor for side in resize):
        raise ValueError(f"size {resize} is no multiple of size_divisor {divisor}")
    return resize, crop


def _resized(stated: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """What the whole image is resized to, before a crop; ConvNeXt's own crop apart."""
    size = stated.get("size")
    if kind == "PPLCNet" and stated.get("resize_short", 256) is not None:
        return _square(stated.get("resize_short", 256))
    height, width = _square(size)
    if kind == "PoolFormer" and (share := stated.get("crop_pct", 0.9)) is not None:
        return int(height / _number(share)), int(width / _number(share))
    by_edge = not isinstance(size, Mapping) or "shortest_edge" in size
    if kind == "Levit" and by_edge:
        return int(_LEVIT * height), int(_LEVIT * width)
    return height, width


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
