"""Images in tar shards, as WebDataset writes them: read where they lie, never unpacked.

No name in a shard is a path on the disk. A member is a place in the shard: an offset and a size.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from robustcli.data.files import is_image, open_regular
from robustcli.data.packed.container import MOST_BYTES, refuse_fault
from robustcli.errors import DataError

_MOST_HEADER = 2**17  # bytes of one header
_MOST_LABEL = 2**20
_LONGEST = 1024  # characters of a name
_BLOCK = 512
SUFFIX = ".tar"
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"(\xb5/\xfd")  # gzip, bzip2, xz, zstandard
_LABELS = ("label", "cls", "class")  # keys of a label in JSON
Found = tuple[str, int, int]  # name, offset, size


@dataclass
class Sample:
    """The members of one key. image, label: (name, offset, size). fault: why the image cannot be used."""

    image: Found | None = None
    label: Found | None = None
    json: Found | None = None
    fault: str = ""


@dataclass(frozen=True)
class Scanned:
    """What a shard holds: its samples by key, how many members are neither image nor label, its damage."""

    samples: dict[str, Sample]
    ignored: int
    damage: str


class _Guarded(io.RawIOBase):
    """A file whose headers may not ask for many bytes at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def scan(path: str, roots: Sequence[str]) -> Scanned:
    """The samples of one shard, in the order of their first member.

    Raises:
        DataError: E-FILE, no tar archive, or a packed one.
    """
    samples: dict[str, Sample] = {}
    ignored = 0
    with open_regular(path, inside=roots) as file:
        damage = _check_magic(file, path)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        walk = _Walk(file, size)
        for member in walk:
            ignored += not _sorted_in(samples, member, size)
        return Scanned(samples, ignored, damage or walk.damage)


def _check_magic(file: BinaryIO, path: str) -> str:
    """What is wrong with a file of no bytes; raises DataError for one that is packed."""
    start = file.read(6)
    if start.startswith(_PACKED):
        what = "a packed tar archive has no places to read from"
        hint = f"unpack it to a plain .tar: gunzip {path}"
        raise DataError(what, where=path, hint=hint, code="E-FILE")
    return "" if start else "the shard is empty"


class _Walk:
    """The members of an open shard. damage: why it ended before its end mark, "" when it did not."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.damage, self._file, self._size = "", file, size

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            archive: Any = tarfile.TarFile(fileobj=_Guarded(self._file), mode="r")
        except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError) as error:
            self.damage = f"not a tar archive: {error}"
            return
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
                self.damage = f"damaged at byte {archive.offset} of {self._size}: {error}"
                return
            if member is None:
                self._see_the_end(archive.offset)
                return
            archive.members = []  # otherwise it keeps all of them
            yield member

    def _see_the_end(self, offset: int) -> None:
        """An archive ends with a block of zeros, and nothing but zeros follows."""
        self._file.seek(offset)
        if len(self._file.read(_BLOCK).strip(b"\0")) or offset + _BLOCK > self._size:
            self.damage = f"cut off or damaged at byte {offset} of {self._size}: what follows is lost"
            return
        while piece := self._file.read(_MOST_HEADER):
            if piece.strip(b"\0"):
                self.damage = f"more members stand behind its end at byte {offset}: what follows is lost"
                return


def _sorted_in(samples: dict[str, Sample], member: tarfile.TarInfo, size: int) -> bool:
    """Put the member to the sample of its key. False for one that is neither image nor label."""
    folder, _, file = member.name.rpartition("/")
    stem, dot, ending = file.partition(".")
    label = ending.lower() in ("cls", "cls.txt")
    if member.isdir() or not dot or not stem or not (is_image(file) or label or ending.lower() == "json"):
        return False
    key = f"{folder}/{stem}" if folder else stem
    fault = _fault(member, size)
    if "name" in fault:
        key = f"member at byte {member.offset}"
    sample = samples.setdefault(key, Sample())
    place = (f"{key}.{ending}", member.offset_data, member.size)
    field_name = "label" if label else "json"
    if is_image(file):
        field_name = "image"
    if getattr(sample, field_name) is not None:
        fault = fault or f"two members are called {place[0]!r}"
    setattr(sample, field_name, place)
    sample.fault = sample.fault or fault
    return True


def _fault(member: tarfile.TarInfo, size: int) -> str:
    """Why the member cannot be read; "" when it can."""
    pieces = member.name.split("/")
    if member.name.startswith("/") or ".." in pieces or "\\" in member.name:
        return "its name leaves the shard"
    if not member.name.isprintable() or len(member.name) > _LONGEST:
        return "its name is too long or has control characters"
    if member.issym() or member.islnk():
        return "a link, which shards do not follow"
    if not member.isreg() or member.issparse():
        return "no plain file (device, FIFO or sparse file)"
    if member.size > MOST_BYTES:
        return f"{member.size} bytes, more than {MOST_BYTES} (bomb?)"
    if member.size < 0 or member.offset_data + member.size > size:
        return f"cut off: the shard ends after {max(0, size - member.offset_data)} of {member.size} bytes"
    return ""


def read_label(path: str, sample: Sample, roots: Sequence[str]) -> str | None:
    """The label as text: what .cls holds, or a key of the JSON; None where neither says one."""
    for place, parse in ((sample.label, _plain), (sample.json, _in_json)):
        if place is None or place[2] > _MOST_LABEL:
            continue
        with open_regular(path, inside=roots) as file:
            file.seek(place[1])
            text = parse(file.read(place[2]))
        if text:
            return text
    return None


def _plain(stored: bytes) -> str | None:
    try:
        text = stored.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and len(text) <= _LONGEST else None


def _in_json(stored: bytes) -> str | None:
    try:
        told = json.loads(stored)
    except (ValueError, RecursionError):
        return None
    values = [told[key] for key in _LABELS if key in told] if isinstance(told, dict) else []
    value = values[0] if values else None
    if type(value) is int or isinstance(value, str):
        return _plain(str(value).encode(errors="replace"))
    return None


@dataclass
class Shards:
    """The images of tar shards, see `Container`; `add` tells it which there are.

    root: folder of the shards. roots: folders that links may lead into.
    """

    root: str
    roots: tuple[str, ...]
    faults: dict[str, str] = field(default_factory=dict)
    _files: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)
    _stamps: list[tuple[int, int]] = field(default_factory=list)
    _blocks: list[tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]] = field(default_factory=list)

    def add(self, shard: str, names: Sequence[str], places: Sequence[tuple[int, int]]) -> None:
        """The images of one shard: their names, which begin with it, and (offset, size) of each.

        They are kept in two arrays, which forked processes share.
        """
        if shard in self._numbers or not names:
            return
        self._numbers[shard] = len(self._files)
        as_bytes = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        order = np.argsort(as_bytes)
        self._files.append(shard)
        status = os.stat(os.path.join(self.root, shard))
        self._stamps.append((status.st_size, status.st_mtime_ns))
        self._blocks.append((as_bytes[order], np.array(places, dtype=np.int64)[order]))

    def _place(self, name: str) -> tuple[int, int, int]:
        """(number of the shard, offset, size)."""
        ends = (match.end() - 1 for match in re.finditer(re.escape(SUFFIX) + "/", name))
        shard = next((self._numbers[name[:end]] for end in ends if name[:end] in self._numbers), None)
        if shard is not None:
            names, places = self._blocks[shard]
            row = int(np.searchsorted(names, os.fsencode(name)))
            if row < len(names) and names[row] == os.fsencode(name):
                offset, size = places[row].tolist()
                return shard, offset, size
        raise DataError("no such image", where=os.path.join(self.root, name), code="E-FILE")

    def open(self, name: str) -> BinaryIO:
        """See `Container.open`."""
        where = os.path.join(self.root, name)
        refuse_fault(self.faults, name, where)
        shard, offset, size = self._place(name)
        with open_regular(os.path.join(self.root, self._files[shard]), inside=self.roots) as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def stamp(self, name: str) -> tuple[int, int]:
        """See `Container.stamp`: the size of the image, the time of its shard."""
        shard, _, size = self._place(name)
        return size, self._stamps[shard][1]
