"""Images as arrays of pixels: what the gallery and the trackers show of an adversarial example."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
#: A change of pixels, in levels of 1/255; they need not be whole.
Levels = NDArray[np.float64]
#: Name -> uint8 [N, H, W, 3]; the same N images in each, in reading order: clean, adversarial, difference.
Panels = Mapping[str, Pixels]
_TILE = 96  # in a sheet of panels, images smaller than this are enlarged by a whole factor
#: Levels from grey to black or white, and as much as half precision may add to a change.
REACH = 127.6
_GAP = 4  # white pixels between two images of a sheet


def amplified(clean: Pixels, adversarial: Pixels, factor: float) -> Pixels:
    """round(127.5 + factor * (adversarial - clean)), clipped to 0..255: grey where nothing changed.

    clean, adversarial: uint8 of one shape, whichever it is.
    """
    return amplified_change(change_of(clean, adversarial), factor)


def change_of(clean: Pixels, adversarial: Pixels) -> Levels:
    """adversarial - clean, in levels of 1/255."""
    return adversarial.astype(np.float64) - clean.astype(np.float64)


def amplified_change(change: Levels, factor: float) -> Pixels:
    """round(127.5 + factor * change), clipped to 0..255: grey where nothing changed."""
    return np.clip(np.rint(127.5 + factor * change), 0, 255).astype(np.uint8)


def fitting(clean: Pixels, adversarial: Pixels) -> float:
    """The largest factor with which `amplified` clips nothing: a whole number, below 1 one of tenths.

    clean, adversarial: uint8 of one shape, whichever it is.
    """
    return fitting_change(change_of(clean, adversarial))


def fitting_change(change: Levels) -> float:
    """The same for a change in levels of 1/255, which need not be whole."""
    largest = largest_of(change)
    if not largest:
        return 1.0
    factor = REACH / largest
    if factor >= 1:
        return float(math.floor(factor))
    return math.floor(10 * factor) / 10


def largest_of(change: Levels) -> float:
    """max |change|; 0 without a pixel."""
    return float(np.abs(change).max(initial=0))


def are_pairs(clean: Pixels, adversarial: Pixels) -> bool:
    """Whether both are uint8 [N, H, W, C] of one shape."""
    both_uint8 = clean.dtype == adversarial.dtype == np.uint8
    return both_uint8 and clean.ndim == 4 and clean.shape == adversarial.shape


def as_rgb(pixels: Pixels) -> Pixels:
    """[..., C] as [..., 3]: C = 3 as it is, of any other C the mean over channels, as grey."""
    if pixels.shape[-1] == 3:
        return pixels
    grey = np.rint(pixels.mean(axis=-1, keepdims=True)).astype(np.uint8)
    return np.repeat(grey, 3, axis=-1)


def enlarged(image: Pixels, scale: int) -> Pixels:
    """[H, W, C] with each pixel a flat square of `scale` x `scale`, so that each change stays visible."""
    return image.repeat(scale, 0).repeat(scale, 1)


def panels_of(clean: Pixels, adversarial: Pixels, amplify: float | None) -> dict[str, Pixels]:
    """clean, adversarial and round(127.5 + amplify * (adversarial - clean)), as RGB.

    clean, adversarial: uint8 [N, H, W, C]; C = 3 is RGB, of other C the mean over channels is shown.
    amplify: factor of the difference, > 0; None means `fitting`.
    Raises ValueError for other types or shapes.
    """
    if not are_pairs(clean, adversarial):
        raise ValueError(
            f"need two equal uint8 [N, H, W, C], got {clean.dtype} {clean.shape} "
            f"and {adversarial.dtype} {adversarial.shape}"
        )
    if amplify is None:
        amplify = fitting(clean, adversarial)
    if not amplify > 0:
        raise ValueError(f"amplify must be > 0, got {amplify}")
    difference = amplified(clean, adversarial, amplify)
    panels = {"clean": clean, "adversarial": adversarial, "difference": difference}
    return {name: as_rgb(pixels) for name, pixels in panels.items()}


def sheet(panels: Panels) -> Pixels:
    """All panels in one picture, uint8 [h, w, 3]: a row per panel, a column per image, white gaps between.

    Raises ValueError without an image.
    """
    shapes = [pixels.shape for pixels in panels.values()]
    if len(set(shapes)) != 1 or 0 in shapes[0]:
        shown = ", ".join(map(str, shapes)) or "none"
        raise ValueError(f"need panels of one shape [N, H, W, 3], got {shown}")
    count, height, width, _ = shapes[0]
    scale = max(1, _TILE // max(height, width))
    down, across = height * scale + _GAP, width * scale + _GAP
    picture = np.full((len(panels) * down - _GAP, count * across - _GAP, 3), 255, dtype=np.uint8)
    for i, pixels in enumerate(panels.values()):
        for k, image in enumerate(pixels):
            top, left = i * down, k * across
            picture[top : top + height * scale, left : left + width * scale] = enlarged(image, scale)
    return picture
