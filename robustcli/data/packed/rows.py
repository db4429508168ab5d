"""The rows of parquet files: labels as text, arrays, and image files, each read when it is asked for."""

from __future__ import annotations

import io
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from robustcli.data.packed.columns import check_group, depth, opened, pyarrow
from robustcli.data.packed.container import MOST_BYTES, bad_image, refuse_fault
from robustcli.errors import DataError

_KEPT = 2**28  # bytes of row groups that a process keeps
_ROW = re.compile(r"(.*)\[(\d{1,12})\]", re.DOTALL)
_NO_THREADS = {"use_threads": False}  # forked processes read too


def row_name(file: str, row: int) -> str:
    """How messages and records call one image."""
    return f"{file}[{row}]"


def read_labels(path: str, column: str, roots: Sequence[str]) -> list[str | None]:
    """All labels of a file as text, None where none stands."""
    with opened(path, roots) as file:
        found = file.read(columns=[column], **_NO_THREADS)[column].to_pylist()
    return [None if value is None else str(value) for value in found]


def read_arrays(path: str, column: str, roots: Sequence[str]) -> Any:
    """All arrays of a file, [N, …]. Raises DataError where they differ in shape, or one is missing."""
    pieces: list[Any] = []
    with opened(path, roots) as file:
        for group in range(file.metadata.num_row_groups):
            check_group(file, group, column, path)
            for chunk in file.read_row_group(group, columns=[column], **_NO_THREADS)[column].chunks:
                pieces += [_stacked(chunk, path)] if len(chunk) else []
    if not pieces:
        return np.zeros((0, 1, 1), dtype=np.uint8)
    if len({piece.shape[1:] for piece in pieces}) > 1:
        raise _uneven(path)
    return np.concatenate(pieces)


def _stacked(chunk: Any, path: str) -> Any:
    """One array of equally long lists in lists."""
    compute, values, shape = pyarrow("compute"), getattr(chunk, "storage", chunk), [len(chunk)]
    while depth(values.type):
        lengths = set() if values.null_count else set(compute.list_value_length(values).unique().to_pylist())
        if len(lengths) != 1:
            raise _uneven(path)
        values, shape = values.flatten(), [*shape, *lengths]
    if values.null_count:
        raise _uneven(path)
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _uneven(path: str) -> DataError:
    what = "the arrays differ in shape, or one is missing"
    return DataError(what, where=path, hint="make all images one size", code="E-SHAPE")


@dataclass
class ParquetImages:
    """Image files in one column of parquet files, see `Container`.

    root: folder of the files. column: name. roots: folders that links may lead into.
    faults: row -> why it has no use.
    """

    root: str
    column: str
    roots: tuple[str, ...]
    faults: dict[str, str] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _kept: _Kept | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def open(self, name: str) -> BinaryIO:
        """See `Container.open`."""
        where = os.path.join(self.root, name)
        refuse_fault(self.faults, name, where)
        match = _ROW.fullmatch(name)
        if match is None:
            raise DataError("no such image", where=where, code="E-FILE")
        try:
            found = self._groups().value(match[1], int(match[2]))
        except DataError as error:
            raise bad_image(error.what, where) from error
        if found is None:
            raise bad_image("no bytes stand in the file, perhaps only a path", where)
        if len(found) > MOST_BYTES:
            raise bad_image(f"{len(found)} bytes, more than {MOST_BYTES} (bomb?)", where)
        return io.BytesIO(found)

    def stamp(self, name: str) -> tuple[int, int]:
        """See `Container.stamp`: of the file that holds the image."""
        file = name.rpartition("[")[0]
        if file not in self._stamps:
            status = os.stat(os.path.join(self.root, file))
            self._stamps[file] = status.st_size, status.st_mtime_ns
        return self._stamps[file]

    def _groups(self) -> _Kept:
        """The row groups that this process has read; a forked one begins anew."""
        if self._kept is None or self._kept.process != os.getpid():
            self._kept = _Kept(self.root, self.column, self.roots)
        return self._kept


class _Kept:
    """The row groups that were read last, up to a number of bytes. Threads share it."""

    def __init__(self, root: str, column: str, roots: tuple[str, ...]) -> None:
        self.process, self._root, self._column, self._roots = os.getpid(), root, column, roots
        self._lock = threading.Lock()
        self._ends: dict[str, Any] = {}
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def value(self, file: str, row: int) -> bytes | None:
        """The bytes of one image, None where there are none. Raises DataError for a damaged row group."""
        with self._lock:
            ends = self._file_ends(file)
            group = int(np.searchsorted(ends, row, side="right"))
            if group >= len(ends):
                raise DataError(f"the file has {ends[-1] if len(ends) else 0} rows", where=file)
            start = int(ends[group - 1]) if group else 0
            values = self._group(file, group)
        found = values[row - start].as_py()
        return found.get("bytes") if isinstance(found, dict) else found

    def _file_ends(self, file: str) -> Any:
        """Number of rows up to the end of each row group."""
        if file not in self._ends:
            with opened(os.path.join(self._root, file), self._roots) as opened_file:
                about = opened_file.metadata
                sizes = [about.row_group(k).num_rows for k in range(about.num_row_groups)]
            self._ends[file] = np.cumsum(sizes)
        return self._ends[file]

    def _group(self, file: str, group: int) -> Any:
        key, path = (file, group), os.path.join(self._root, file)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        with opened(path, self._roots) as opened_file:
            check_group(opened_file, group, self._column, path)
            table = opened_file.read_row_group(group, columns=[self._column], **_NO_THREADS)
        self._groups[key] = table[self._column]
        while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > _KEPT:
            self._groups.popitem(last=False)
        return self._groups[key]
