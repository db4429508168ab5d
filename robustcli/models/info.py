"""What a model must know of the data it is built for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from robustcli.errors import ConfigError


@dataclass(frozen=True)
class ModelInfo:
    """Classes, image shape and normalisation of a model.

    Args:
        num_classes: K, length of a row of logits, >= 2.
        channels: C of the images, 1 (grey) or 3 (RGB); any C >= 1 is accepted.
        size: side of the square images in pixels, >= 1.
        mean, std: per channel, in pixel units of [0, 1]; std > 0. Three values with C = 1 mean that the grey
            image is shown to the network as RGB, as a network trained on ImageNet expects.

    Raises:
        ConfigError: a number is outside these ranges.
    """

    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        for name, least in (("num_classes", 2), ("channels", 1), ("size", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"model {name}={value!r} must be a whole number >= {least}")
        check_normalisation(self.mean, self.std)
        grey_as_rgb = self.channels == 1 and len(self.mean) == 3
        if len(self.mean) != self.channels and not grey_as_rgb:
            raise ConfigError(
                f"normalisation has {len(self.mean)} means for images of {self.channels} channels"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.size, self.size

    @property
    def inputs(self) -> int:
        """Channels that the backbone sees: C, or 3 when a grey image is shown as RGB."""
        return len(self.mean)

    def as_dict(self) -> dict[str, Any]:
        """JSON form; ``ModelInfo(**info.as_dict()) == info``."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """ConfigError unless there are as many means as stds, all are finite and every std > 0."""
    if len(mean) != len(std) or not mean:
        raise ConfigError(f"normalisation needs as many means as stds, got {len(mean)} and {len(std)}")
    if not all(math.isfinite(v) for v in (*mean, *std)) or min(std) <= 0:
        raise ConfigError(f"normalisation mean={mean} std={std} must be finite with std > 0")
