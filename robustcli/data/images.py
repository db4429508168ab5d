"""One image file -> uint8 pixels. Every damaged or hostile file becomes a DataError with its path."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.files import open_regular
from robustcli.data.packed.container import Container, bad_image
from robustcli.errors import DataError, ResourceError
from robustcli.runtime.signals import heed

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB of RGB); Pillow warns there, we refuse
# Plain raster formats only: others run interpreters (EPS) or rarely used parsers.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_UNKNOWN_SCALE = {"I": "32-bit integer", "F": "float"}  # Pillow's mode -> what its pixels are
_VOTES = 16  # images that say which size is the usual one
_CHUNK = 32  # images per task of the thread pool


@dataclass(frozen=True)
class Decoder:
    """file -> EXIF turn -> 8-bit RGB or grey -> short side to round(size * ratio) -> centre crop to size.

    Alpha is dropped (as torchvision does); 16-bit grey is scaled by 255/white; the filter is PIL's bilinear
    (antialiased).

    Args:
        root: folder of the data set; links may not leave it.
        size: side of the square result in pixels; None keeps the stored size.
        ratio: resized short side / size, >= 1 (256/224 for ImageNet's usual evaluation).
        white: the largest value of a 16-bit pixel; larger ones are an error.
        grey: turn colour into grey.
        link_root: another folder that links may lead into; "" for none.
        container: holds the images where they are no files of their own.
    """

    root: str
    size: int | None = None
    ratio: float = 1.0
    white: int = 65535
    grey: bool = False
    link_root: str = ""
    container: Container | None = None

    @classmethod
    def of(cls, config: DataConfig, root: str, *, size: int | None = None, ratio: float = 1.0) -> Decoder:
        """The decoder that the data section asks for. size: where data.size is null."""
        link_root = os.path.expanduser(config.link_root) if config.link_root else ""
        white, grey = config.max_value or 65535, config.channels == 1
        return cls(root, config.size or size, ratio, white, grey, link_root)

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that links may lead into."""
        return (self.root, self.link_root) if self.link_root else (self.root,)

    def opened(self, relative: str) -> BinaryIO:
        """See `Container.open`."""
        if self.container is not None:
            return self.container.open(relative)
        return open_regular(os.path.join(self.root, relative), inside=self.roots)

    def stamp(self, relative: str) -> tuple[int, int]:
        """See `Container.stamp`."""
        if self.container is not None:
            return self.container.stamp(relative)
        status = os.stat(os.path.join(self.root, relative))
        return status.st_size, status.st_mtime_ns

    def deep(self, relative: str) -> bool:
        """Whether the file has 16-bit pixels; False where it cannot be read."""
        return self.stored_mode(relative)[1]

    def stored_size(self, paths: Sequence[str]) -> tuple[int, int]:
        """(width, height) of the first readable file before it is resized; (0, 0) for none among eight."""
        sizes = (self._looked(path, lambda image: image.size, (0, 0)) for path in paths[:8])
        return next((size for size in sizes if size != (0, 0)), (0, 0))

    def stored_mode(self, relative: str) -> tuple[str, bool]:
        """(Pillow's mode, whether the pixels have 16 bits) of a file; ("", False) where it cannot be read."""
        return self._looked(relative, lambda image: (image.mode, _is_deep(image)), ("", False))

    def _looked(self, relative: str, ask: Callable[[Image], T], otherwise: T) -> T:
        """What `ask` says of the file's header."""
        from PIL import Image

        try:
            with self.opened(relative) as stream, Image.open(stream, formats=_FORMATS) as image:
                return ask(image)
        except Exception:  # whoever reads the image gets the error
            return otherwise

    def __call__(self, relative: str) -> Pixels:
        """uint8 [H, W] (grey) or [H, W, 3]. Raises DataError (E-IMAGE, E-FILE) with the path."""
        with self.opened(relative) as stream:
            return self.read(stream, os.path.join(self.root, relative))

    def read(
        self,
        stream: BinaryIO,
        path: str,
        formats: tuple[str, ...] = _FORMATS,
        check: Callable[[Image], None] = lambda image: None,
    ) -> Pixels:
        """The pixels of an open file, as `__call__`.

        Args:
            path: what messages call the file.
            formats: names that Pillow has for the formats that are read.
            check: looks at the header before any pixel is decoded, and raises DataError for what is refused.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(stream, formats=formats) as image:
                _check_size(image, path)
                check(image)
                ImageOps.exif_transpose(image, in_place=True)
                return np.asarray(self._fit(self._mode(image, path)), dtype=np.uint8)
        except (DataError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise bad_image(f"not a readable image ({stream.seek(0, os.SEEK_END)} bytes)", path) from error
        except Exception as error:  # Pillow answers damaged files with many exception types
            raise bad_image(f"damaged image: {error}", path) from error

    def _mode(self, image: Image, path: str) -> Image:
        shallow = _eight_bit(image, path, self.white)
        return shallow.convert("L") if self.grey else shallow

    def _fit(self, image: Image) -> Image:
        from PIL import Image as pil

        size = self.size
        if size is None or (image.size == (size, size) and self.ratio == 1.0):
            return image
        side = round(size * self.ratio)
        scale = side / min(image.size)
        width, height = (max(side, round(edge * scale)) for edge in image.size)
        image = image.resize((width, height), pil.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        return image.crop((left, top, left + size, top + size))


def _check_size(image: Image, path: str) -> None:
    """Raises DataError for an image that would take too much memory."""
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height} pixels"
        raise bad_image(f"image of {size} is larger than {MAX_PIXELS} (decompression bomb?)", path)


def _is_deep(image: Image) -> bool:
    """Whether the pixels have 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _eight_bit(image: Image, path: str, white: int) -> Image:
    """Mode L or RGB. Raises DataError for 32-bit and float images, whose scale is unknown."""
    from PIL import Image as pil

    mode = image.mode
    if _is_deep(image):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > white:
            told = "" if white == 65535 else " (data.max_value)"
            raise bad_image(f"a pixel is {int(deep.max())}, outside 0..{white}{told}", path)
        return pil.fromarray(((deep * 255 + white // 2) // white).astype(np.uint8))
    if mode in _UNKNOWN_SCALE:
        kind = _UNKNOWN_SCALE[mode]
        raise bad_image(f"{kind} pixels: the scale is unknown, save 8-bit or 16-bit images", path)
    if mode in ("L", "RGB"):
        return image
    if mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # otherwise Pillow warns
    return image.convert("RGB")


def planes(pixels: Pixels, shape: tuple[int, int, int], path: str) -> Pixels:
    """uint8 [C, H, W] of a decoded image; grey becomes three equal planes when C is 3.

    Raises:
        DataError: E-SHAPE, another size, or a colour image where C is 1.
    """
    stacked = np.atleast_3d(pixels).transpose(2, 0, 1)
    if stacked.shape[1:] != shape[1:]:
        hint = f"data.size={min(shape[1:])} resizes all images and crops them to a square"
    elif len(stacked) > shape[0]:
        hint = "data.channels=3 repeats grey images as colour; data.channels=1 turns colour into grey"
    else:
        return np.broadcast_to(stacked, shape)
    expected, got = ("x".join(str(n) for n in edges) for edges in (shape, stacked.shape))
    what = f"images differ: expected {expected}, got {got}"
    raise DataError(what, where=path, hint=hint, code="E-SHAPE")


def quiet_pillow() -> None:
    """Hide Pillow's warnings on odd files: what matters is raised, with the path."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def collect_faults(count: int, threads: int, job: Callable[[int], None]) -> dict[int, DataError]:
    """Call job(index) for all `count` indices on threads: index -> the DataError of its job, in order.

    Threads help, because decoding frees the interpreter lock. Raises Interrupted, see `heed`.
    """
    faults: dict[int, DataError] = {}

    def run(start: int) -> None:
        heed()
        for index in range(start, min(start + _CHUNK, count)):
            try:
                job(index)
            except DataError as error:
                faults[index] = error

    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, threads)) as pool:
        quiet_pillow()
        list(pool.map(run, range(0, count, _CHUNK)))
    return dict(sorted(faults.items()))


def usual_shape(paths: Sequence[str], decoder: Decoder) -> tuple[int, int]:
    """(H, W) of the images: the most frequent one of a few, spread over all; else of the first readable one.

    One odd file among the first ones must not make all others wrong. Raises the first DataError when none can
    be read.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    for path in [] if decoder.size else paths[:: -(-len(paths) // _VOTES) or 1]:
        with suppress(DataError):
            height, width = decoder(path).shape[:2]
            sizes[height, width] += 1
    if sizes:
        return sizes.most_common(1)[0][0]
    first: DataError | None = None
    for path in paths:
        try:
            height, width = decoder(path).shape[:2]
            return height, width
        except DataError as error:
            first = first or error
    raise first or DataError("no images", where=decoder.root)


def decode_all(
    paths: Sequence[str],
    decoder: Decoder,
    threads: int,
    grey_channels: Callable[[], int] = lambda: 1,
    side: tuple[int, int] | None = None,
) -> tuple[Tensor, dict[int, DataError]]:
    """Pixels uint8 [N, C, H, W] of all files, and the faults by index. C is 3 when an image has colour.

    The rows of files with a fault are zero. `grey_channels` gives C for images that are all grey.
    `side` is (H, W) where `usual_shape` was asked before.

    Raises:
        DataError: no image can be read.
        ResourceError: not enough memory for the pixels.
    """
    shape = (3, *(side or usual_shape(paths, decoder)))
    try:
        pixels = np.zeros((len(paths), *shape), dtype=np.uint8)
    except MemoryError as error:
        raise ResourceError(
            f"no memory for {len(paths)} images of {shape}",
            where=decoder.root,
            hint="data.storage=stream, or a smaller data.size",
        ) from error
    colour = np.zeros(len(paths), dtype=np.bool_)

    def decode(index: int) -> None:
        decoded = decoder(paths[index])
        colour[index] = decoded.ndim == 3
        pixels[index] = planes(decoded, shape, os.path.join(decoder.root, paths[index]))

    faults = collect_faults(len(paths), threads, decode)
    if not colour.any() and grey_channels() == 1:
        pixels = np.ascontiguousarray(pixels[:, :1])
    return torch.from_numpy(pixels), faults
