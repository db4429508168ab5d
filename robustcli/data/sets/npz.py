"""`npz:PATH`: numpy arrays from a file, never a pickle."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_labels
from robustcli.data.datasets import source_path
from robustcli.data.files import open_regular
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

# What zipfile, zlib and numpy raise for damaged files.
# RuntimeError stands for an encrypted member, TokenError for a broken header.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    SyntaxError,
    RuntimeError,
    TypeError,
    OverflowError,
    tokenize.TokenError,
)
_MAX_RATIO, _SMALL = 100, 64 * 2**20  # unpacked / packed, watched above 64 MiB


@datasets.register("npz", path=True)
def npz(config: DataConfig) -> DataBundle:
    """x_train, y_train, x_test, y_test (x_val, y_val) or x, y (seeded split); optional `classes`: names.

    x: uint8 [N, C, H, W], or float in [0, 1].
    y: integers [N] in 0 to K - 1, without a gap unless `classes` gives K.
    """
    path = source_path(config)
    with open_regular(path) as stream:
        arrays = _read(stream, path)
    pairs = _pairs(arrays)
    keys = list(chain.from_iterable(pairs.values()))
    lacking = _lacking(arrays, pairs)
    if lacking:
        has = ", ".join(sorted(arrays)) or "none"
        hint = f"needs x_train, y_train, x_test, y_test, or x, y; has {has}"
        raise DataError(f"no array {lacking}", where=str(path), hint=hint)
    stored = {part: (_pixels(arrays[x], f"{path}: {x}"), arrays[y]) for part, (x, y) in pairs.items()}
    classes = _classes(arrays, path, arrays[keys[1]])
    notes = []
    unused = sorted(set(arrays) - {*keys, "classes"})
    if unused:
        notes.append(printable(f"arrays left aside: {', '.join(unused)}"))
    return bundle_arrays(
        config, "npz", name=f"npz:{path.name}", where=str(path), stored=stored, classes=classes, notes=notes
    )


def _pairs(arrays: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Stored split -> names of its images and labels, of which one may be missing."""
    if "x" in arrays:
        return {"train": ("x", "y")}
    named = {part: (f"x_{part}", f"y_{part}") for part in PARTS}
    return {part: (x, y) for part, (x, y) in named.items() if x in arrays or y in arrays}


def _lacking(arrays: dict[str, Any], pairs: dict[str, tuple[str, str]]) -> str:
    """The arrays without which there is no data set; "" when none is missing."""
    if not pairs:
        return "x and y"
    missing = [key for key in chain.from_iterable(pairs.values()) if key not in arrays]
    if not missing and set(pairs) == {"val", "test"}:
        return "x_train and y_train"
    return ", ".join(missing)


def _read(stream: BinaryIO, path: Path) -> dict[str, Any]:
    """All arrays of the file, whose announced sizes are checked before memory is taken."""
    try:
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
            packed = sum(item.compress_size for item in archive.infolist())
            if unpacked > max(_SMALL, _MAX_RATIO * packed):
                what = f"unpacks from {packed} to {unpacked} bytes (decompression bomb?)"
                raise DataError(what, where=str(path), hint="save it again with numpy.savez")
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            return {item.filename.removesuffix(".npy"): _member(archive, item) for item in members}
    except _DAMAGED as error:
        raise DataError(
            f"not a readable .npz file: {error}",
            where=str(path),
            hint="write it with numpy.savez(path, x=…, y=…), without objects",
        ) from error


def _member(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> Any:
    """One array; a header that promises more bytes than the member has never allocates them."""
    with archive.open(item) as member:
        shape, dtype = _header(member)
        if dtype.hasobject:
            raise ValueError(f"array {item.filename} holds Python objects (a pickle)")
        size, rest = dtype.itemsize * math.prod(int(edge) for edge in shape), item.file_size - member.tell()
        if size != rest:
            raise ValueError(f"array {item.filename} promises {size} bytes and has {rest}")
    with archive.open(item) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"array {item.filename} is longer than its header says")
        return array


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype that the member announces."""
    if np.lib.format.read_magic(member) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return shape, dtype


def _pixels(array: Any, where: str) -> Tensor:
    """The array as a contiguous tensor; float64 as float32. Shape and range are checked later."""
    what = f"pixels are {array.dtype}"
    if array.dtype.kind not in "uif":
        raise DataError(what, where=where, hint="store uint8 0..255, or float in [0, 1]", code="E-RANGE")
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        raise DataError(what, where=where, hint="store uint8: x.astype(numpy.uint8)", code="E-RANGE")
    dtype = array.dtype.newbyteorder("=")
    if array.dtype.kind == "f" and array.dtype.itemsize != 2:
        dtype = np.dtype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))


def _classes(arrays: dict[str, Any], path: Path, labels: Any) -> tuple[str, ...]:
    """Names from the `classes` array, else "0" to "K - 1" with K from the labels."""
    if "classes" in arrays:
        return _names(arrays["classes"], path)
    checked = check_labels(labels, None, where=f"{path}: labels")
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
