"""`npz:PATH`: numpy arrays from a file, never a pickle."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_labels
from robustcli.data.datasets import source_path
from robustcli.data.files import open_regular
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_PARTS = ("train", "val", "test")
# What zipfile, zlib and numpy answer to damaged files (RuntimeError: an encrypted member; TokenError: a broken header).
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

    x: uint8 [N, C, H, W], or float in [0, 1].  y: integers [N] in 0 … K - 1, without a gap unless `classes` gives K.
    """
    path = source_path(config)
    with open_regular(path) as stream:
        arrays = _read(stream, path)
    pairs = (
        {"train": ("x", "y")}
        if "x" in arrays
        else {p: (f"x_{p}", f"y_{p}") for p in _PARTS if f"x_{p}" in arrays or f"y_{p}" in arrays}
    )
    missing = [key for pair in pairs.values() for key in pair if key not in arrays]
    if not pairs or missing or set(pairs) == {"val", "test"}:
        lacks = ", ".join(missing) or ("x_train and y_train" if pairs else "x and y")
        has = ", ".join(sorted(arrays)) or "none"
        raise DataError(
            f"no array {lacks}",
            where=str(path),
            hint=f"needs x_train, y_train, x_test, y_test, or x, y; has {has}",
        )
    stored = {part: (_pixels(arrays[x], f"{path}: {x}"), arrays[y]) for part, (x, y) in pairs.items()}
    classes = _classes(arrays, path, arrays[pairs.get("train", next(iter(pairs.values())))[1]])
    unused = sorted(set(arrays) - {key for pair in pairs.values() for key in pair} - {"classes"})
    notes = [printable(f"arrays left aside: {', '.join(unused)}")] if unused else []
    return bundle_arrays(
        config, "npz", name=f"npz:{path.name}", where=str(path), stored=stored, classes=classes, notes=notes
    )


def _read(stream: BinaryIO, path: Path) -> dict[str, Any]:
    """All arrays of the file, whose announced sizes are checked before memory is taken."""
    try:
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
            packed = sum(item.compress_size for item in archive.infolist())
            if unpacked > max(_SMALL, _MAX_RATIO * packed):
                raise DataError(
                    f"unpacks from {packed} to {unpacked} bytes (decompression bomb?)",
                    where=str(path),
                    hint="save it again with numpy.savez",
                )
            return {
                item.filename.removesuffix(".npy"): _member(archive, item)
                for item in archive.infolist()
                if item.filename.endswith(".npy")
            }
    except _DAMAGED as error:
        raise DataError(
            f"not a readable .npz file: {error}",
            where=str(path),
            hint="write it with numpy.savez(path, x=…, y=…), without objects",
        ) from error


def _member(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> Any:
    """One array; a header that promises more bytes than the member has never allocates them."""
    with archive.open(item) as member:
        version = np.lib.format.read_magic(member)
        reader = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = reader(member)
        if dtype.hasobject:
            raise ValueError(f"array {item.filename} holds Python objects (a pickle)")
        size = dtype.itemsize
        for edge in shape:
            size *= int(edge)
        if size != item.file_size - member.tell():
            raise ValueError(
                f"array {item.filename} promises {size} bytes and has {item.file_size - member.tell()}"
            )
    with archive.open(item) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"array {item.filename} is longer than its header says")
        return array


def _pixels(array: Any, where: str) -> Tensor:
    """The array as a contiguous tensor; float64 as float32. Shape and range are checked later."""
    if array.dtype.kind not in "uif":
        raise DataError(
            f"pixels are {array.dtype}",
            where=where,
            hint="store uint8 0..255, or float in [0, 1]",
            code="E-RANGE",
        )
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        raise DataError(
            f"pixels are {array.dtype}",
            where=where,
            hint="store uint8: x.astype(numpy.uint8)",
            code="E-RANGE",
        )
    native = (
        array.astype(np.float32)
        if array.dtype.kind == "f" and array.dtype.itemsize != 2
        else array.astype(array.dtype.newbyteorder("="))
    )
    return torch.from_numpy(np.ascontiguousarray(native))


def _classes(arrays: dict[str, Any], path: Path, labels: Any) -> tuple[str, ...]:
    """Names from the `classes` array, else 0 … K - 1 with K from the labels."""
    if "classes" in arrays:
        names = arrays["classes"]
        texts = (
            tuple(str(name) for name in names.tolist()) if names.dtype.kind == "U" and names.ndim == 1 else ()
        )
        if not texts or len(set(texts)) != len(texts) or not all(text.isprintable() for text in texts):
            raise DataError(
                "`classes` is not a list of different names",
                where=str(path),
                hint="classes=numpy.array(['cat', 'dog'])",
                code="E-CLASS",
            )
        return texts
    checked = check_labels(labels, None, where=f"{path}: labels")
    return tuple(str(k) for k in range(int(checked.max()) + 1 if len(checked) else 0))
