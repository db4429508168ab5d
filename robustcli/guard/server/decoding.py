"""Uploaded bytes -> pixels, by the reader of image files; what a client sends wrongly is a `Refused`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustcli.data.images import Decoder, Pixels, planes
from robustcli.errors import DataError
from robustcli.guard.server.refusal import Refused

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats whose parsers are widely attacked and kept. TIFF and PPM, which files may have, are not among them.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
_SEVERAL_ARE_FINE = "MPO"  # a photograph of some telephones: a JPEG with previews behind it


@dataclass(frozen=True)
class Uploads:
    """bytes -> pixels of the shape that the model takes.

    Nothing is resized. An image of another size is refused by its header, before any pixel is decoded, so
    that a small file cannot ask for much memory or time.

    Args:
        shape: (C, H, W) of the model's images.
    """

    shape: tuple[int, int, int]
    decoder: Decoder = field(default_factory=lambda: Decoder(""))

    def __call__(self, files: Sequence[bytes]) -> Tensor:
        """float32 [N, C, H, W] in [0, 1]. Raises Refused (415, 422) that names the first faulty image."""
        pixels = [self._pixels(data, f"image {place}") for place, data in enumerate(files)]
        return torch.from_numpy(np.stack(pixels)).float().div_(255)

    def _pixels(self, data: bytes, name: str) -> Pixels:
        try:
            decoded = self.decoder.read(io.BytesIO(data), name, FORMATS, self._check)
            return planes(decoded, self.shape, name)
        except DataError as error:
            status = 415 if error.what.startswith("not a readable image") else 422
            text = error.what if status == 422 else f"not one of {', '.join(FORMATS)}"
            raise Refused(status, f"{name}: {text}") from None

    def _check(self, image: Image) -> None:
        """Raises DataError for an image of another size, or of several pictures."""
        channels, height, width = self.shape
        if image.size not in ((width, height), (height, width)):  # EXIF may turn it
            got = f"{image.width}x{image.height}"
            raise DataError(f"expected {width}x{height} pixels ({channels} channels), got {got}")
        if getattr(image, "is_animated", False) and image.format != _SEVERAL_ARE_FINE:
            raise DataError("expected one picture, got an animation")
