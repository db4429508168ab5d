"""Parquet files as Hugging Face writes them: which column has the images, which the labels, and their names.

Only values are read. Types that would run code to be understood are read as what they are stored as.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robustcli.data.files import open_regular
from robustcli.errors import DataError, ResourceError, printable

_IMAGES = ("image", "img", "images", "pixels", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "target", "class", "cls")
_MOST_BYTES = 16 * 2**20  # of a README or JSON
_MOST_COLUMN = 2**30  # bytes of one column of one row group, unpacked


def pyarrow(name: str = "parquet") -> Any:
    """The module pyarrow.NAME. Raises ResourceError E-EXTRA where the package is missing."""
    try:
        return importlib.import_module(f"pyarrow.{name}" if name else "pyarrow")
    except ImportError as error:
        raise ResourceError(
            "pyarrow is not installed", where="hf:", hint="pip install 'robustcli[parquet]'", code="E-EXTRA"
        ) from error


@contextmanager
def opened(path: str, roots: Sequence[str]) -> Iterator[Any]:
    """The parquet file (pyarrow's ParquetFile). Raises DataError E-FILE for what is none."""
    module = pyarrow()
    with open_regular(path, inside=roots) as file:
        try:
            yield module.ParquetFile(file)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # pyarrow answers damaged files with many exception types
            what = f"not a readable parquet file: {str(error).splitlines()[0] if str(error) else error!r}"
            raise DataError(what, where=path, hint="download or write it again", code="E-FILE") from error


@dataclass(frozen=True)
class Columns:
    """What the columns of one file are.

    image: name of the column of images. arrays: whether it has arrays; else it has the bytes of image files.
    label: name of the column of labels. names: of the classes in the order of their labels, () where unknown.
    aside: other columns.
    """

    image: str
    arrays: bool
    label: str
    names: tuple[str, ...]
    aside: tuple[str, ...]


def columns_of(path: str, roots: Sequence[str], root: Path) -> Columns:
    """What the columns of a file are; names of classes stand in it, or in the description of the data set.

    Raises:
        DataError: no column of images, or none of labels.
    """
    with opened(path, roots) as file:
        schema = file.schema_arrow
    image = _chosen(_IMAGES, [field.name for field in schema if _kind(field.type)])
    label = _chosen(_LABELS, [field.name for field in schema if _is_label(field.type)])
    if not image or not label:
        has = ", ".join(f"{field.name} ({_told(field.type)})" for field in schema)
        lacking, hint = "labels", "call a column of integers or names 'label'"
        if not image:
            lacking, hint = "images", "call a column of {bytes, path}, of bytes or of arrays 'image'"
        raise DataError(printable(f"no column of {lacking}; there are {has}"), where=path, hint=hint)
    names = _names(schema.metadata or {}, label) or described(root, label)
    aside = tuple(field.name for field in schema if field.name not in (image, label))
    return Columns(image, _kind(schema.field(image).type) == "arrays", label, names, aside)


def _chosen(usual: Sequence[str], possible: Sequence[str]) -> str:
    """The column of a usual name, else the only one that is possible; "" for none."""
    lower = {name.lower(): name for name in reversed(possible)}
    named = next((lower[name] for name in usual if name in lower), "")
    return named or (possible[0] if len(possible) == 1 else "")


def _stored_type(column: Any) -> Any:
    """What a value of the type is stored as; Hugging Face gives nested lists a type of its own."""
    return getattr(column, "storage_type", column)


def _kind(column: Any) -> str:
    """bytes, arrays, or "" for a type that holds no images."""
    types, column = pyarrow("").types, _stored_type(column)
    if types.is_struct(column):
        return "bytes" if any(field.name == "bytes" for field in column) else ""
    if types.is_binary(column) or types.is_large_binary(column):
        return "bytes"
    return "arrays" if depth(column) >= 2 else ""


def depth(column: Any) -> int:
    """How many lists are one in the other."""
    types, found = pyarrow("").types, 0
    while types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column):
        column, found = column.value_type, found + 1
    return found


def _is_label(column: Any) -> bool:
    types = pyarrow("").types
    if types.is_dictionary(column):
        column = column.value_type
    return bool(types.is_integer(column) or types.is_string(column) or types.is_large_string(column))


def _told(column: Any) -> str:
    """The type in few letters."""
    text = str(column)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _names(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...]:
    """The names that Hugging Face writes into the file itself."""
    try:
        told = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return ()
    info = told.get("info") if isinstance(told, dict) else None
    return _of_features(info.get("features") if isinstance(info, dict) else None, label)


def described(root: Path, label: str) -> tuple[str, ...]:
    """The names that dataset_info.json, dataset_infos.json or the head of README.md lists; () for none."""
    for name in ("dataset_info.json", "dataset_infos.json", "README.md"):
        path = root / name
        if not path.is_file():
            continue
        with open_regular(os.path.realpath(path)) as file:
            told = _parsed(name, file.read(_MOST_BYTES))
        for info in _infos(told):
            if names := _of_features(info.get("features"), label):
                return names
    return ()


def _parsed(name: str, stored: bytes) -> Any:
    """What a description says, or None where it cannot be read: it only gives names."""
    try:
        text = stored.decode("utf-8-sig")
        if name.endswith(".json"):
            return json.loads(text)
        head = text.split("\n---", 1)[0].removeprefix("---")
        return yaml.safe_load(head) if text.startswith("---") else None
    except (ValueError, RecursionError, yaml.YAMLError):
        return None


def _infos(told: Any) -> list[Mapping[str, Any]]:
    """Each mapping that may have `features`: the description, and those of its configurations."""
    if not isinstance(told, dict):
        return []
    inner = told.get("dataset_info", list(told.values()))
    listed = inner if isinstance(inner, list) else [inner]
    return [info for info in (told, *listed) if isinstance(info, dict)]


def _of_features(features: Any, label: str) -> tuple[str, ...]:
    """The names of a ClassLabel, as {label: {names: […]}} or as [{name: label, dtype: {class_label: …}}]."""
    found: Any = None
    if isinstance(features, dict) and isinstance(features.get(label), dict):
        found = features[label].get("names")
    for feature in features if isinstance(features, list) else ():
        dtype = feature.get("dtype") if isinstance(feature, dict) and feature.get("name") == label else None
        inner = dtype.get("class_label") if isinstance(dtype, dict) else None
        found = inner.get("names") if isinstance(inner, dict) else found
    if isinstance(found, dict):
        keys = {str(key): name for key, name in found.items()}
        found = [keys.get(str(k)) for k in range(len(keys))]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return ()
    good = all(name and name.isprintable() for name in found) and len(set(found)) == len(found)
    return tuple(found) if good else ()


def check_group(file: Any, group: int, column: str, path: str) -> None:
    """Raises DataError E-FILE for a row group whose column would fill the memory."""
    about = file.metadata.row_group(group)
    chunks = (about.column(k) for k in range(about.num_columns))
    size = sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column
    )
    if size > _MOST_COLUMN:
        what = f"row group {group} has {size} bytes of {column!r}, more than {_MOST_COLUMN}"
        raise DataError(what, where=path, hint="write the file again with smaller row groups", code="E-FILE")
