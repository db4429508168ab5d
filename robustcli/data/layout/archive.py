"""The arrays of an .npz file, each read when it is asked for, never as a pickle."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from robustcli.data.files import open_regular
from robustcli.errors import DataError

# What zipfile, its unpackers and numpy raise for damaged files.
# RuntimeError stands for an encrypted member and for an unknown packing, TokenError for a broken header.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
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
_MOST_NAMES = 2**20  # texts in one array: each becomes an object of its own


class Archive:
    """The file at `path`.

    Raises:
        DataError: no .npz file; one that would unpack to a hundred times its size. `read` raises it for a
            damaged array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as archive:
            members = archive.infolist()
            unpacked, packed = (
                sum(item.file_size for item in members),
                sum(item.compress_size for item in members),
            )
            if unpacked > max(_SMALL, _MAX_RATIO * packed):
                what = f"unpacks from {packed} to {unpacked} bytes (decompression bomb?)"
                raise DataError(what, where=str(path), hint="save it again with numpy.savez")
            names = [item.filename for item in members if item.filename.endswith(".npy")]
        self.names = [name.removesuffix(".npy") for name in names]

    def is_deep(self, name: str) -> bool:
        """Whether the array's header announces uint16; False where it cannot be read."""
        with suppress(DataError), self._opened() as archive, archive.open(f"{name}.npy") as member:
            return bool(_header(member)[1] == np.uint16)
        return False

    def read(self, name: str) -> Any:
        """One array. Raises DataError when it is damaged."""
        with self._opened() as archive:
            return _member(archive, archive.getinfo(f"{name}.npy"))

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        with open_regular(self.path) as stream:
            try:
                with zipfile.ZipFile(stream) as archive:
                    yield archive
            except _DAMAGED as error:
                raise DataError(
                    f"not a readable .npz file: {error}",
                    where=str(self.path),
                    hint="write it with numpy.savez(path, x=…, y=…), without objects",
                ) from error


def _member(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> Any:
    """One array; a header that promises more bytes than the member has never allocates them."""
    with archive.open(item) as member:
        shape, dtype = _header(member)
        _check_header(item, shape, dtype, item.file_size - member.tell())
    with archive.open(item) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"array {item.filename} is longer than its header says")
        return array


def _check_header(item: zipfile.ZipInfo, shape: tuple[int, ...], dtype: Any, rest: int) -> None:
    """Raises ValueError for a header that does not describe the `rest` bytes behind it."""
    if dtype.hasobject:
        raise ValueError(f"array {item.filename} holds Python objects (a pickle)")
    count = math.prod(int(edge) for edge in shape)
    if dtype.itemsize == 0 and count:  # any number of empty texts fits into no bytes at all
        raise ValueError(f"array {item.filename} promises {count} texts of no length")
    if dtype.kind in "US" and count > _MOST_NAMES:
        raise ValueError(f"array {item.filename} promises {count} texts, more than {_MOST_NAMES}")
    size = dtype.itemsize * count
    if size != rest:
        raise ValueError(f"array {item.filename} promises {size} bytes and has {rest}")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype that the member announces."""
    if np.lib.format.read_magic(member) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return shape, dtype
