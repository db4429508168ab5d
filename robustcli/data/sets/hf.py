"""`hf:PATH`: parquet files as Hugging Face lays them out. Files and values are read; nothing is executed.

PATH is a folder (``data/train-00000-of-00001.parquet``, ``train/0000.parquet``), one .parquet file, or the
name of a data set on the hub, which is looked for in the local cache alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import source_path
from robustcli.data.files import Listing
from robustcli.data.images import Decoder
from robustcli.data.layout.classes import chosen_order, stated_classes
from robustcli.data.layout.words import order_note
from robustcli.data.listings import bundle_listings
from robustcli.data.packed.columns import Columns, columns_of, pyarrow
from robustcli.data.packed.found import PackedFiles, by_split, files_below
from robustcli.data.packed.hub import cached
from robustcli.data.packed.labels import Labels
from robustcli.data.packed.pixels import to_pixels
from robustcli.data.packed.rows import ParquetImages, read_arrays, read_labels, row_name
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_SUFFIX = ".parquet"
_NO_LABEL = "its row has no label"


@datasets.register("hf", path=True)
def hf(config: DataConfig) -> DataBundle:
    """Parquet files of Hugging Face: a folder, one file, or a hub name in the local cache. Extra: parquet.

    Images are files (struct of bytes and path, or bytes) or arrays ([H, W], [H, W, C] or [C, H, W] of 0..255
    or of floats in [0, 1]). Class names come from the file, dataset_info.json or README.md. A split without
    labels is left aside.
    """
    pyarrow()
    root, explicit, links = _located(source_path(config))
    decoder = Decoder.of(config, str(root))
    roots = (*decoder.roots, str(links)) if links else decoder.roots
    files = [explicit] if explicit else files_below(root, _SUFFIX, roots)
    if not files:
        hint = "hf:PATH reads .parquet files; of an Arrow folder: datasets.load_from_disk(…).to_parquet(…)"
        raise DataError("no .parquet files", where=str(root), hint=hint, code="E-FILE")
    found = by_split(root, files, config, "hf", whole=not explicit)
    tables = _Tables.of(found, roots)
    own = tables.columns.names or stated_classes(config)
    labels = Labels.of(own, tables.all_labels, str(root))
    classes = chosen_order(stated_classes(config), labels.names, where=str(root))
    aside = tables.columns.aside
    notes = [*found.notes, *([printable(f"columns left aside: {', '.join(aside)}")] * bool(aside))]
    parts, bare = tables.labelled()
    notes += [f"{part}: images without labels, left aside" for part in bare]
    name = printable(f"hf:{_shown(config, root, explicit, links)}")
    if tables.columns.arrays:
        return _arrays(config, name, tables, labels, parts, notes)
    images = ParquetImages(str(root), tables.columns.image, roots)
    listers: dict[str, Callable[[], Listing]] = {
        part: partial(tables.listing, part, images, labels, classes) for part in parts
    }
    decoder = replace(decoder, container=images)
    return bundle_listings(
        config, "hf", decoder, listers, classes, name=name, notes=[*notes, *order_note(classes)]
    )


def _located(path: Path) -> tuple[Path, str, Path | None]:
    """(root, the file that was named or "", a folder that links may lead into as well)."""
    if path.is_dir():
        return path, "", None
    if path.exists():
        return path.parent, path.name, None
    if path.suffix == _SUFFIX:
        raise DataError("no such file", where=str(path), hint="check the path", code="E-FILE")
    root, links = cached(str(path))
    return root, "", links


def _shown(config: DataConfig, root: Path, explicit: str, links: Path | None) -> str:
    """What tables call the data set."""
    return str(source_path(config)) if links else explicit or root.resolve().name


def _arrays(
    config: DataConfig,
    name: str,
    tables: _Tables,
    labels: Labels,
    parts: Sequence[str],
    notes: Sequence[str],
) -> DataBundle:
    """The bundle of a column of arrays."""
    stored: dict[str, tuple[Callable[[], Tensor], object]] = {}
    for part in parts:
        numbers = labels.numbers(tables.labels(part), labels.names)
        stored[part] = partial(tables.pixels, part, config), _checked(numbers, tables, part, labels)
    where = tables.found.root
    return bundle_arrays(
        config, "hf", name=name, where=where, stored=stored, classes=labels.names, notes=notes
    )


def _checked(numbers: Sequence[int | None], tables: _Tables, part: str, labels: Labels) -> Any:
    """int64 [N]. Raises DataError for a row without a label: rows of arrays are not skipped."""
    if None in numbers:
        row = numbers.index(None)
        what = f"row {row}: {labels.fault(tables.labels(part)[row], _NO_LABEL)}"
        raise DataError(what, where=f"{tables.found.root}: {part}", hint="mend or remove the row")
    return np.array(numbers, dtype=np.int64)


@dataclass
class _Tables:
    """The files of each split, and what their columns are. Labels of a split are read once."""

    found: PackedFiles
    roots: tuple[str, ...]
    columns: Columns
    _labels: dict[str, dict[str, list[str | None]]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: PackedFiles, roots: tuple[str, ...]) -> _Tables:
        """Raises DataError where two files have other columns."""
        root = Path(found.root)
        paths = [os.path.join(found.root, file) for files in found.parts.values() for file in files]
        columns = [columns_of(path, roots, root) for path in paths]
        for path, own in zip(paths, columns, strict=True):
            if (own.image, own.arrays, own.label) != (columns[0].image, columns[0].arrays, columns[0].label):
                what = f"other columns than in {paths[0]}: {own.image} and {own.label}"
                if own.arrays is not columns[0].arrays:
                    what += ", of arrays in one and of image files in the other"
                raise DataError(what, where=path, hint="give all files the same columns")
        return cls(found, roots, next((own for own in columns if own.names), columns[0]))

    def labels(self, part: str) -> list[str | None]:
        """The labels of a split as text, file after file."""
        return [text for texts in self._by_file(part).values() for text in texts]

    def _by_file(self, part: str) -> dict[str, list[str | None]]:
        if part not in self._labels:
            self._labels[part] = {
                file: read_labels(os.path.join(self.found.root, file), self.columns.label, self.roots)
                for file in self.found.parts[part]
            }
        return self._labels[part]

    def all_labels(self) -> list[str]:
        """The labels of all splits."""
        texts = (text for part in self.found.parts for text in self.labels(part))
        return [text for text in texts if text is not None]

    def labelled(self) -> tuple[list[str], list[str]]:
        """(splits with labels, splits whose labels are all missing or -1, as hidden ones are stored)."""
        bare = [part for part in self.found.parts if set(self.labels(part)) <= {None, "-1"}]
        parts = [part for part in self.found.parts if part not in bare]
        return (parts, bare) if parts else (bare, [])

    def listing(self, part: str, images: ParquetImages, labels: Labels, classes: Sequence[str]) -> Listing:
        """The images of a split. One without a label gets the first class, and a fault: no use sees it."""
        names = [
            row_name(file, row) for file, texts in self._by_file(part).items() for row in range(len(texts))
        ]
        texts = self.labels(part)
        numbers = labels.numbers(texts, classes)
        for name, text, number in zip(names, texts, numbers, strict=True):
            if number is None:
                images.faults[name] = labels.fault(text, _NO_LABEL)
        return Listing(tuple(classes), names, [number or 0 for number in numbers], labels_in_paths=False)

    def pixels(self, part: str, config: DataConfig) -> Tensor:
        """The arrays of a split as pixels."""
        paths = [os.path.join(self.found.root, file) for file in self.found.parts[part]]
        found = [read_arrays(path, self.columns.image, self.roots) for path in paths]
        if len({array.shape[1:] for array in found}) > 1:
            raise DataError("the files hold images of different shapes", where=paths[0], code="E-SHAPE")
        return to_pixels(_bytes(np.concatenate(found)), config, f"{self.found.root}: {part}")


def _bytes(array: Any) -> Any:
    """Wide integers of 0 to 255, which lists of numbers are stored as, as bytes."""
    if array.dtype.kind in "ui" and array.dtype.itemsize > 2 and array.size:
        if 0 <= array.min() and array.max() <= 255:
            return array.astype(np.uint8)
    return array
