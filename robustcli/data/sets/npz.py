"""`npz:PATH`: numpy arrays from a file, never a pickle."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_labels
from robustcli.data.datasets import source_path
from robustcli.data.layout.archive import Archive
from robustcli.data.layout.classes import stated_classes
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_IMAGES, _LABELS = ("x", "images", "image", "data"), ("y", "labels", "label", "targets")
_CLASSES = "classes"
_NEEDS = "needs x_train, y_train, x_test, y_test, or x, y (or train_images, train_labels …, or image, label)"


@datasets.register("npz", path=True)
def npz(config: DataConfig) -> DataBundle:
    """x_train, y_train, x_test, y_test (x_val, y_val) or x, y (seeded split); optional `classes`: names.

    train_images, train_labels … and image, label are read too, and images with the channels last.

    x: uint8 [N, C, H, W], uint16 (data.max_value is white), or float in [0, 1].
    y: integers [N] in 0 to K - 1, without a gap unless `classes` gives K.
    """
    path = source_path(config)
    archive = Archive(path)
    pairs = _pairs(archive.names)
    keys = list(chain.from_iterable(pairs.values()))
    lacking = _lacking(archive.names, pairs)
    if lacking:
        has = ", ".join(sorted(archive.names)) or "none"
        raise DataError(f"no array {lacking}", where=str(path), hint=f"{_NEEDS}; has {has}")
    stored = {
        part: (partial(_pixels, archive, x, config), _column(archive.read(y)))
        for part, (x, y) in pairs.items()
    }
    classes = _classes(config, archive, stored)
    unused = sorted(set(archive.names) - {*keys, _CLASSES})
    notes = [printable(f"arrays left aside: {', '.join(unused)}")] * bool(unused)
    return bundle_arrays(
        config,
        "npz",
        name=f"npz:{path.name}",
        where=str(path),
        stored=stored,
        classes=classes,
        notes=notes,
        deep=any(archive.is_deep(x) for x, _ in pairs.values()),
    )


def _pairs(names: list[str]) -> dict[str, tuple[str, str]]:
    """Stored split -> names of its images and labels, of which one may be missing."""
    for images, labels in zip(_IMAGES, _LABELS, strict=True):
        if images in names:
            return {"train": (images, labels)}
    for pattern in (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("X_{}", "y_{}")):
        keys = {part: (pattern[0].format(part), pattern[1].format(part)) for part in PARTS}
        pairs = {part: pair for part, pair in keys.items() if set(pair) & set(names)}
        if pairs:
            return pairs
    return {}


def _lacking(names: list[str], pairs: dict[str, tuple[str, str]]) -> str:
    """The arrays that are missing, as text; those of train when there is no data set; "" for none."""
    if not pairs:
        return "x and y"
    return ", ".join(key for key in chain.from_iterable(pairs.values()) if key not in names)


def _pixels(archive: Archive, key: str, config: DataConfig) -> Tensor:
    """The array as a contiguous tensor [N, C, H, W]; float64 and uint16 as float32.

    Shape and range are checked later.
    """
    array, where = archive.read(key), f"{archive.path}: {key}"
    if array.dtype.kind not in "uif":
        hint = "store uint8 0..255, uint16, or float in [0, 1]"
        raise DataError(f"pixels are {array.dtype}", where=where, hint=hint, code="E-RANGE")
    array = _channels_first(array)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _from_16_bits(array, config.max_value or 65535, where)
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        hint = _integer_hint(array)
        raise DataError(f"pixels are {array.dtype}", where=where, hint=hint, code="E-RANGE")
    dtype = array.dtype.newbyteorder("=")
    if array.dtype.kind == "f" and array.dtype.itemsize != 2:
        dtype = np.dtype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))


def _channels_first(array: Any) -> Any:
    """[N, C, H, W] of [N, H, W, C] and of [N, H, W]; what is neither stays as it is."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        return array.transpose(0, 3, 1, 2)
    return array


def _from_16_bits(array: Any, white: int, where: str) -> Tensor:
    """x = v / white as float32."""
    highest = int(array.max(initial=0))
    if highest > white:
        what = f"the largest pixel is {highest}, above data.max_value={white}"
        raise DataError(what, where=where, hint="raise data.max_value", code="E-RANGE")
    if array.size and highest * 255 <= white:
        what = f"the largest pixel is {highest}, which is black where white is {white}"
        hint = f"say what white is: data.max_value={_likely_white(highest, white)}"
        raise DataError(what, where=where, hint=hint, code="E-RANGE")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)) / np.float32(white))


def _likely_white(highest: int, white: int) -> int:
    """255 for bytes in a wider type, else the largest number of as many bits as the largest pixel has."""
    if highest <= 255 < white:
        return 255
    return int(2 ** max(1, highest.bit_length()) - 1)


def _integer_hint(array: Any) -> str:
    """What to store in place of wide integers, so that nothing is cut off."""
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low >= 0 and high <= 255:
        return "they fit into bytes: store x.astype(numpy.uint8)"
    if low >= 0 and high <= 65535:
        return "store x.astype(numpy.uint16), and data.max_value=… says what white is"
    return "store uint8 0..255, uint16, or float in [0, 1]"


def _column(labels: Any) -> Any:
    """Labels [N] of [N, 1]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    return labels


def _classes(config: DataConfig, archive: Archive, stored: dict[str, tuple[Any, Any]]) -> tuple[str, ...]:
    """Names from the array `classes`, else those that data.classes states, else "0" to "K - 1"."""
    if _CLASSES in archive.names:
        return _names(archive.read(_CLASSES), archive.path)
    stated = stated_classes(config)
    if stated is not None:
        return stated
    part, (_, labels) = next(iter(stored.items()))
    checked = check_labels(labels, None, where=f"{archive.path}: labels of {part}")
    return tuple(str(k) for k in range(len(checked.unique())))


def _names(stored: Any, path: Path) -> tuple[str, ...]:
    """The array as class names."""
    if stored.dtype.kind == "U" and stored.ndim == 1:
        names = tuple(str(name) for name in stored.tolist())
        if names and len(set(names)) == len(names) and all(name.isprintable() for name in names):
            return names
    raise DataError(
        "`classes` is not a list of different names",
        where=str(path),
        hint="classes=numpy.array(['cat', 'dog'])",
        code="E-CLASS",
    )
