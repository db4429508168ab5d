"""`mnist` and `fashion-mnist`: IDX files, packed or not, read here; torchvision only downloads them."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.files import open_regular
from robustcli.data.sets.vision import download
from robustcli.errors import DataError
from robustcli.registry import datasets

_MAX_BYTES = 2**31
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@datasets.register(
    "mnist", presets={"linf": 0.3, "l2": 2.0, "l0": 10.0}, augment=(0, False), mean=(0.1307,), std=(0.3081,)
)
def mnist(config: DataConfig) -> DataBundle:
    """60,000 + 10,000 grey 28x28 digits. With only the t10k files, a seeded split of those.

    Source: LeCun, Cortes & Burges, 1998.
    """
    return _load(config, "mnist", "MNIST", tuple(str(k) for k in range(10)))


@datasets.register(
    "fashion-mnist", presets={"linf": 0.1, "l2": 1.5}, augment=(0, True), mean=(0.2860,), std=(0.3530,)
)
def fashion_mnist(config: DataConfig) -> DataBundle:
    """60,000 + 10,000 grey 28x28 pictures of clothes in the MNIST format.

    Source: Xiao, Rasul & Vollgraf, 2017, arXiv:1708.07747.
    """
    return _load(config, "fashion-mnist", "FashionMNIST", _FASHION)


def _load(config: DataConfig, name: str, vision: str, classes: tuple[str, ...]) -> DataBundle:
    """The data set `name` from data.root, where torchvision's class `vision` downloads it."""
    root = Path(config.root).expanduser()
    places = [place.absolute() for place in (root / vision / "raw", root / name, root)]
    pairs = _pairs(places)
    if not pairs and config.download:
        download(vision, root, name)
        pairs = _pairs(places)
    if not pairs:
        looked = ", ".join(str(place) for place in places)
        where = f"looked for train-images-idx3-ubyte(.gz) and t10k-… in {looked}"
        raise DataError(f"{name} is not on disk", where=where, hint="add --download, or set data.root")
    stored = {
        part: (torch.from_numpy(read_idx(images)[:, None]), read_idx(labels))
        for part, (images, labels) in pairs.items()
    }
    notes = []
    if "train" not in stored:
        notes.append("t10k split: the 60,000 training images are not there")
    where = str(next(iter(pairs.values()))[0].parent)
    return bundle_arrays(config, name, name=name, where=where, stored=stored, classes=classes, notes=notes)


def _pairs(places: list[Path]) -> dict[str, tuple[Path, Path]]:
    """train, test -> (file of images, file of labels) in the first folder that has any such pair."""
    for place in places:
        pairs: dict[str, tuple[Path, Path]] = {}
        for part, stem in (("train", "train"), ("test", "t10k")):
            images = _plain_or_packed(place / f"{stem}-images-idx3-ubyte")
            labels = _plain_or_packed(place / f"{stem}-labels-idx1-ubyte")
            if images and labels:
                pairs[part] = images, labels
        if pairs:
            return pairs
    return {}


def _plain_or_packed(path: Path) -> Path | None:
    """The file, or else the file with .gz behind its name."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.exists():
            return candidate
    return None


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The uint8 array of an IDX file (gzip or plain).

    Format: bytes 0, 0, 8 (uint8), d, then d big-endian uint32 edges, then the values. Never reads more than
    the header announces.

    Raises:
        DataError: another format, a truncated file, trailing bytes.
    """
    with open_regular(path) as raw:
        stream = _unpacked(raw)
        try:
            zero, kind, edges = struct.unpack(">HBB", stream.read(4))
            if zero != 0 or kind != 8 or not 1 <= edges <= 4:
                raise ValueError("not an IDX file of bytes")
            shape = struct.unpack(f">{edges}I", stream.read(4 * edges))
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise ValueError(f"announces {size} bytes")
            values = stream.read(size + 1)
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise _damaged(f"damaged IDX file: {error}", path) from error
    if len(values) > size:
        raise _damaged(f"IDX file has more than of {size} bytes", path)
    if len(values) < size:
        raise _damaged(f"IDX file has {len(values)} of {size} bytes", path)
    return np.array(np.frombuffer(values, dtype=np.uint8).reshape(shape), dtype=np.uint8)


def _unpacked(raw: BinaryIO) -> BinaryIO:
    """The contents of the file, which may be packed by gzip."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if packed:
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    return raw


def _damaged(what: str, path: Path) -> DataError:
    return DataError(what, where=str(path), hint="download it again")
