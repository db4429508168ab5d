"""What breaks the model, to look at: clean | adversarial | amplified difference."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.errors import printable
from robustcli.reporting.figure import Target, matplotlib_package, write_picture
from robustcli.reporting.pixels import (
    REACH,
    Levels,
    Pixels,
    amplified_change,
    are_pairs,
    as_rgb,
    change_of,
    enlarged,
    fitting_change,
    largest_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_TILE = 300  # small images are enlarged by a whole factor to about this
_GAP = 20
_LINE, _SIZE = 36, 26  # height of a line of text, and of its letters
_RIGHT, _WRONG, _INK, _PALE, _FRAME = "#00714f", "#b8430c", "#222222", "#777777", "#cccccc"
#: A line of text and its colour.
Words = tuple[str, str]


def gallery(
    target: Target,
    clean: Pixels,
    adversarial: Pixels,
    true: Sequence[str],
    predicted: Sequence[str],
    *,
    clean_predicted: Sequence[str] | None = None,
    change: Levels | None = None,
    distances: Sequence[str] = (),
    amplify: float | None = None,
    title: str = "",
) -> None:
    """One PNG: per sample the clean image, the adversarial one and their difference, each with its labels.

    Args:
        target: where to draw.
        clean, adversarial: uint8 [n, H, W, C], n >= 1. C = 1 is grey, C = 3 is RGB; of other C the mean over
            channels is shown.
        true, predicted: class names, n each: the label, and the model's answer to the adversarial image.
        clean_predicted: the model's answers to the clean images; None when all were right.
        change: float64 [n, H, W, C], adversarial minus clean in levels of 1/255, where the images were not
            made of whole levels; None: what the two images show.
        distances: how far each image went, in words; () says that grey is no change.
        amplify: factor of the difference, > 0; 127.5 stands for no change. None is the largest factor that
            cuts nothing off. The picture says which it is.
        title: what the images are of.

    Raises ValueError for other shapes, types or lengths, ResourceError when `target` cannot be written.
    """
    if clean_predicted is None:
        clean_predicted = true
    _check(clean, adversarial, (true, clean_predicted, predicted), amplify)
    if change is None:
        change = change_of(clean, adversarial)
    if amplify is None:
        amplify = fitting_change(change)
    sheet = _Sheet(clean, [title, difference_words(change, amplify)])
    difference, far = amplified_change(change, amplify), distances or ["grey = no change"] * len(true)
    for i, label in enumerate(true):
        sheet.tile(i, 0, clean[i], (f"true: {label}", _INK), _answer(clean_predicted[i], label))
        sheet.tile(i, 1, adversarial[i], ("adversarial", _PALE), _answer(predicted[i], label))
        sheet.tile(i, 2, difference[i], (f"difference x {amplify:g}", _PALE), (far[i], _PALE))
    write_picture(target, sheet.png())


def difference_words(change: Levels, amplify: float) -> str:
    """The line that says how differences are shown, and whether any is cut off."""
    largest, fits = largest_of(change), REACH / amplify
    words = (
        f"Differences x {amplify:g}, grey = no change; the largest change of a pixel is {largest:.3g}/255."
    )
    if largest > fits:
        words += f" Changes above {math.floor(fits)}/255 are cut off."
    return words


def _check(clean: Pixels, adversarial: Pixels, names: Sequence[Sequence[str]], amplify: float | None) -> None:
    """Raises ValueError as `gallery`."""
    if not are_pairs(clean, adversarial) or not clean.size:
        raise ValueError(
            f"need two equal uint8 [n, H, W, C], got {clean.dtype} {clean.shape} "
            f"and {adversarial.dtype} {adversarial.shape}"
        )
    true, before, after = map(len, names)
    if {true, before, after} != {len(clean)}:
        raise ValueError(f"{len(clean)} images, but {true}, {before} and {after} names")
    if amplify is not None and not amplify > 0:
        raise ValueError(f"amplify must be > 0, got {amplify}")


def _answer(predicted: str, true: str) -> Words:
    """What the model said, in the colour of a right or of a wrong answer."""
    return f"predicted: {predicted}", _RIGHT if predicted == true else _WRONG


class _Sheet:
    """White paper, with lines of text on top and room for three tiles per sample. All sizes are in pixels.

    images: uint8 [n, H, W, C]; the sheet fits them. Samples stand one below the other.
    texts: written above the images and wrapped; an empty one is left out.
    """

    def __init__(self, images: Pixels, texts: Sequence[str]) -> None:
        from PIL import Image, ImageDraw

        count, height, width, _ = images.shape
        self.scale = max(1, round(_TILE / max(height, width)))
        self.column = max(width * self.scale, _TILE) + _GAP
        self.row = height * self.scale + 2 * _LINE + 2 * _GAP
        wide = 3 * self.column + _GAP
        lines = [line for text in texts for line in _wrapped(printable(text), wide - 2 * _GAP)]
        self.top = 2 * _GAP + _LINE * len(lines)
        size = (wide, self.top + count * self.row)
        self.image = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.image)
        for k, line in enumerate(lines):
            _write(self.draw, (_GAP, _GAP + k * _LINE), (line, _INK), wide - 2 * _GAP)

    def tile(self, i: int, k: int, pixels: Pixels, first: Words, second: Words) -> None:
        """Tile `k` of sample `i`: a framed picture with two lines of text below it."""
        x, y = _GAP + k * self.column, self.top + i * self.row
        picture = _image(pixels, self.scale)
        self.image.paste(picture, (x, y))
        right_edge, below = x + picture.width, y + picture.height
        self.draw.rectangle(
            (x - 1, y - 1, right_edge, below), outline=_FRAME
        )  # around the pixels, not over them
        _write(self.draw, (x, below + 3), first, self.column - _GAP)
        _write(self.draw, (x, below + 3 + _LINE), second, self.column - _GAP)

    def png(self) -> bytes:
        """The file's content."""
        file = io.BytesIO()
        self.image.save(file, format="PNG", optimize=True)
        return file.getvalue()


def _image(pixels: Pixels, scale: int) -> Image:
    from PIL import Image

    return Image.fromarray(enlarged(as_rgb(pixels), scale))


def _wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, broken between words; one longer word has its own line."""
    font, lines = _font(), list[str]()
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _write(draw: ImageDraw, at: tuple[int, int], words: Words, width: int) -> None:
    """One line in at most `width` pixels, shortened with … where it does not fit."""
    font = _font()
    text, ink = words
    text = printable(text)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "…", font=font) > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, fill=ink, font=font)


@cache
def _font() -> Any:
    """DejaVu Sans of our size, which matplotlib brings along: Latin, Greek, Cyrillic and more."""
    matplotlib = matplotlib_package()
    from PIL import ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), _SIZE)
