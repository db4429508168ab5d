"""Images as PNG files, and back, without loss."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODES = {1: "L", 3: "RGB"}  # channels -> what PIL calls them


def encode_png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3, as PNG bytes; the same bytes for the same pixels."""
    from PIL import Image

    pixels, buffer = upright(image), io.BytesIO()
    mode = MODES[pixels.shape[2]]
    if mode == "L":
        pixels = pixels[:, :, 0]
    Image.fromarray(pixels, mode=mode).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(path: Path) -> Tensor:
    """A PNG written by `encode_png` as uint8 [C, H, W]."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = torch.from_numpy(np.atleast_3d(np.array(image)))
    return pixels.permute(2, 0, 1).contiguous()


def upright(image: Tensor) -> np.ndarray[Any, Any]:
    """[C, H, W] -> array [H, W, C]."""
    return image.permute(1, 2, 0).numpy()
