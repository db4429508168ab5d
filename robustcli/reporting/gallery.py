"""What breaks the model, to look at: clean | adversarial | amplified difference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustcli.errors import printable
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Pixels = NDArray[np.uint8]
_TILE = 150  # images smaller than this are enlarged by a whole factor
_GAP = 10
_LINE = 19  # height of a line of text
_RIGHT, _WRONG, _INK, _PALE, _FRAME = "#00714f", "#b8430c", "#222222", "#777777", "#cccccc"


def amplified(clean: Pixels, adversarial: Pixels, factor: float) -> Pixels:
    """round(127.5 + factor * (adversarial - clean)), clipped to 0..255: grey where nothing changed. uint8, any equal shapes."""
    difference = adversarial.astype(np.float64) - clean.astype(np.float64)
    return np.clip(np.rint(127.5 + factor * difference), 0, 255).astype(np.uint8)


def gallery(
    path: Path,
    clean: Pixels,
    adversarial: Pixels,
    true: Sequence[str],
    predicted: Sequence[str],
    *,
    clean_predicted: Sequence[str] | None = None,
    amplify: float = 10.0,
    title: str = "",
) -> None:
    """One PNG: per sample the clean image, the adversarial one and their difference, each with its labels.

    Args:
        path: where to write, atomically; its folder is made.
        clean, adversarial: uint8 [n, H, W, C], n >= 1; C = 1 grey, C = 3 RGB, other C are shown as the mean over channels.
        true, predicted: class names, n each: the label, and the model's answer to the adversarial image.
        clean_predicted: the model's answers to the clean images; None when all were right.
        amplify: factor of the difference, > 0; 127.5 stands for no change.

    Raises ValueError for other shapes, types or lengths, ResourceError when `path` cannot be written.
    """
    if (
        clean.dtype != np.uint8
        or adversarial.dtype != np.uint8
        or clean.ndim != 4
        or clean.shape != adversarial.shape
        or not clean.size
    ):
        raise ValueError(
            f"need two equal uint8 [n, H, W, C], got {clean.dtype} {clean.shape} and {adversarial.dtype} {adversarial.shape}"
        )
    before = true if clean_predicted is None else clean_predicted
    if {len(true), len(before), len(predicted)} != {len(clean)}:
        raise ValueError(f"{len(clean)} images, but {len(true)}, {len(before)} and {len(predicted)} names")
    if not amplify > 0:
        raise ValueError(f"amplify must be > 0, got {amplify}")
    from PIL import Image, ImageDraw

    height, width = clean.shape[1:3]
    scale = max(1, -(-_TILE // max(height, width)))
    column = max(width * scale, _TILE) + _GAP
    row = height * scale + 2 * _LINE + 2 * _GAP
    across = 2 if len(clean) > 3 and column <= 256 + _GAP else 1
    top = _GAP + (_LINE + _GAP if title else 0)
    sheet = Image.new(
        "RGB", (across * (3 * column + 2 * _GAP) - _GAP, top - (-len(clean) // across) * row), "white"
    )
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_GAP, _GAP), title, _INK, sheet.width - 2 * _GAP, 14)
    for i, (a, b, difference) in enumerate(
        zip(clean, adversarial, amplified(clean, adversarial, amplify), strict=True)
    ):
        left, upper = _GAP + (i % across) * (3 * column + 2 * _GAP), top + (i // across) * row
        labels = (
            (f"true: {true[i]}", _INK, f"predicted: {before[i]}", _RIGHT if before[i] == true[i] else _WRONG),
            (
                "adversarial",
                _PALE,
                f"predicted: {predicted[i]}",
                _RIGHT if predicted[i] == true[i] else _WRONG,
            ),
            (f"difference x {amplify:g}", _PALE, "grey = no change", _PALE),
        )
        for k, (pixels, label) in enumerate(zip((a, b, difference), labels, strict=True)):
            _tile(sheet, draw, (left + k * column, upper), _image(pixels, scale), label, column - _GAP)
    png = io.BytesIO()
    sheet.save(png, format="PNG", optimize=True)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png.getvalue())


def _tile(
    sheet: Image,
    draw: ImageDraw,
    at: tuple[int, int],
    image: Image,
    label: tuple[str, str, str, str],
    width: int,
) -> None:
    """One framed picture with two lines below it; label = (text, ink, text, ink)."""
    x, y = at
    sheet.paste(image, at)
    draw.rectangle(
        (x - 1, y - 1, x + image.width, y + image.height), outline=_FRAME
    )  # around the pixels, not over them
    _text(draw, (x, y + image.height + 3), label[0], label[1], width)
    _text(draw, (x, y + image.height + 3 + _LINE), label[2], label[3], width)


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

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
