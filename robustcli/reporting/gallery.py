"""What breaks the model, to look at: clean | adversarial | amplified difference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustcli.errors import printable
from robustcli.runtime.atomic import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Pixels = NDArray[np.uint8]
_TILE = 150  # images smaller than this are enlarged by a whole factor
_GAP = 10
_LINE = 19  # height of a line of text
_RIGHT, _WRONG, _INK, _PALE = "#00714f", "#b8430c", "#222222", "#777777"


def amplified(clean: Pixels, adversarial: Pixels, factor: float) -> Pixels:
    """round(127.5 + factor * (adversarial - clean)), clipped to 0..255: grey where nothing changed. uint8, any equal shapes."""
    difference = adversarial.astype(np.float64) - clean.astype(np.float64)
    return np.clip(np.rint(127.5 + factor * difference), 0, 255).astype(np.uint8)


def gallery(
    clean: Pixels,
    adversarial: Pixels,
    path: Path,
    *,
    true: Sequence[str],
    clean_predicted: Sequence[str],
    predicted: Sequence[str],
    amplify: float = 10.0,
    title: str = "",
) -> None:
    """One PNG: per sample the clean image, the adversarial one and their difference, each with its labels.

    Args:
        clean, adversarial: uint8 [n, H, W, C], n >= 1; C = 1 grey, C = 3 RGB, other C are shown as the mean over channels.
        path: where to write, atomically; its folder is made.
        true, clean_predicted, predicted: class names, n each: the label, and the model's answers before and after.
        amplify: factor of the difference, > 0; 127.5 stands for no change.

    Raises ValueError for other shapes, types or lengths, ResourceError when `path` cannot be written.
    """
    if clean.dtype != np.uint8 or adversarial.dtype != np.uint8 or clean.ndim != 4 or clean.shape != adversarial.shape or not clean.size:
        raise ValueError(f"need two equal uint8 [n, H, W, C], got {clean.dtype} {clean.shape} and {adversarial.dtype} {adversarial.shape}")
    if {len(true), len(clean_predicted), len(predicted)} != {len(clean)}:
        raise ValueError(f"{len(clean)} images, but {len(true)}, {len(clean_predicted)} and {len(predicted)} names")
    if not amplify > 0:
        raise ValueError(f"amplify must be > 0, got {amplify}")
    from PIL import Image, ImageDraw

    height, width = clean.shape[1:3]
    scale = max(1, -(-_TILE // max(height, width)))
    tile = max(width * scale, _TILE), height * scale
    block = 3 * tile[0] + 2 * _GAP, tile[1] + 2 * _LINE + _GAP
    across = 2 if len(clean) > 3 and tile[0] <= 256 else 1
    down = -(-len(clean) // across)
    top = _GAP + (_LINE + _GAP if title else 0)
    sheet = Image.new("RGB", (across * block[0] + (across + 2) * _GAP + (across - 1) * _GAP, top + down * (block[1] + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_GAP, _GAP), title, _INK, sheet.width - 2 * _GAP, 14)
    difference = amplified(clean, adversarial, amplify)
    for i in range(len(clean)):
        left = _GAP + (i % across) * (block[0] + 3 * _GAP)
        upper = top + (i // across) * (block[1] + _GAP)
        labels = (
            (f"true: {true[i]}", _INK, f"clean: {clean_predicted[i]}", _RIGHT if clean_predicted[i] == true[i] else _WRONG),
            ("adversarial", _PALE, f"now: {predicted[i]}", _RIGHT if predicted[i] == true[i] else _WRONG),
            ("difference", _PALE, f"x {amplify:g}, grey = none", _PALE),
        )
        for column, (pixels, (first, first_ink, second, second_ink)) in enumerate(zip((clean[i], adversarial[i], difference[i]), labels, strict=True)):
            x = left + column * (tile[0] + _GAP)
            sheet.paste(_image(pixels, scale), (x, upper))
            _text(draw, (x, upper + tile[1] + 3), first, first_ink, tile[0])
            _text(draw, (x, upper + tile[1] + 3 + _LINE), second, second_ink, tile[0])
    png = io.BytesIO()
    sheet.save(png, format="PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png.getvalue())


def _image(pixels: Pixels, scale: int) -> Image:
    """[H, W, C] as RGB, each pixel a square of `scale` x `scale`: nearest, so that what was changed stays visible."""
    from PIL import Image

    if pixels.shape[2] != 3:
        grey = np.rint(pixels.mean(axis=2)).astype(np.uint8)
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(scale, 0).repeat(scale, 1)))


def _text(draw: ImageDraw, at: tuple[int, int], text: str, ink: str, width: int, size: int = 13) -> None:
    """`text` in at most `width` pixels, shortened with … where it does not fit."""
    font = _font(size)
    text = printable(text)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "…", font=font) > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, fill=ink, font=font)


def _font(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and more."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
