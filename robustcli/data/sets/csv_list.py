"""`csv:PATH`: image files and their labels, named by the lines of a table.

The table is UTF-8 text with commas. Its first line names the columns: path, label and, where the splits are
given, split. Other columns are left aside. Paths count from the folder of the table and do not leave it. The
classes are the labels, sorted as numbers when all are integers, else as text. A split is train, val or test,
also by their other usual names, or as data.splits says. An error names the line of the table.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import source_path
from robustcli.data.files import Listing, is_inside, open_regular
from robustcli.data.images import Decoder
from robustcli.data.layout.classes import chosen_order, stated_classes
from robustcli.data.layout.words import order_note, part_named
from robustcli.data.listings import bundle_listings
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_NEEDED = ("path", "label")
_HEADER_HINT = "the first line is path,label or path,label,split, with commas"


@dataclass(frozen=True)
class _Row:
    """One image: its line in the table, its file relative to the folder of the table, its label and split."""

    line: int
    path: str
    label: str
    split: str


@datasets.register("csv", path=True)
def csv_list(config: DataConfig) -> DataBundle:
    """Images and labels from a table of path,label, or of path,label,split; without splits carved by seed."""
    table = source_path(config)
    rows, notes = _read(table, config)
    root = str(table.parent)
    decoder = Decoder.of(config, root)
    classes = chosen_order(stated_classes(config), {row.label for row in rows}, where=str(table))
    return bundle_listings(
        config,
        "csv",
        decoder,
        _listings(rows, classes, table, decoder.roots),
        classes,
        name=printable(f"csv:{table.name}"),
        notes=[*notes, *order_note(classes)],
        explain=partial(_located, rows, root, table),
    )


def _read(table: Path, config: DataConfig) -> tuple[list[_Row], list[str]]:
    """The rows of the table, each image once, sorted by path; and notes."""
    stated = _stated(config)
    reader = csv.DictReader(io.StringIO(_text(table), newline=""), skipinitialspace=True, strict=True)
    try:
        columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        _check_columns(columns, table)
        rows = [_row(record, reader.line_num, table, stated) for record in reader]
    except csv.Error as error:
        line = reader.line_num + 1  # behind the last good one
        raise _fault(f"not a table: {error}", table, line, "check the quotes of that line") from error
    if not rows:
        what, hint = "the table names no image", "add lines path,label"
        raise DataError(what, where=str(table), hint=hint, code="E-EMPTY")
    images = [row for row in _distinct(rows, table) if row.split]
    unused = [name for name in columns if name not in (*_NEEDED, "split")]
    notes = []
    if unused:
        notes.append(printable(f"columns left aside: {', '.join(unused)}"))
    if len(images) < len(rows):
        notes.append(f"{len(rows) - len(images)} repeated lines left aside")
    return images, notes


def _text(table: Path) -> str:
    """The table as text; a byte order mark, which spreadsheets write, is dropped."""
    with open_regular(table) as stream:
        stored = stream.read()
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = stored.count(b"\n", 0, error.start) + 1
        raise _fault("not UTF-8 text", table, line, "save the table as UTF-8") from error


def _check_columns(columns: Sequence[str], table: Path) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise _fault(f"no column {' and '.join(missing)}", table, 1, _HEADER_HINT)
    if len(set(columns)) < len(columns):
        raise _fault("two columns of one name", table, 1, _HEADER_HINT)


def _row(record: dict[str | None, str | None], line: int, table: Path, stated: Mapping[str, str]) -> _Row:
    """One line of the table; without a column `split` every image is of one split, train."""
    fields = {name: value.strip() for name, value in record.items() if isinstance(value, str)}
    if len(fields) < len(record):
        hint = "one field for each column; put quotes around a field that has a comma"
        raise _fault("more or fewer fields than the first line has", table, line, hint)
    path, label, split = fields["path"], fields["label"], fields.get("split", "train")
    if not path or not label:
        raise _fault("an empty path or label", table, line, "give both, or remove the line")
    if "\0" in path or not label.isprintable():
        raise _fault("control characters in the path or label", table, line, "rename it")
    part = stated[split] if split in stated else part_named(split)
    if part is None:
        hint = f"write {', '.join(PARTS)}, or say what it is: data.splits.test={split}"
        raise _fault(f"unknown split {split!r}", table, line, hint)
    path = os.path.normpath(path)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise _outside(path, table, line)
    return _Row(line, path, label, part)


def _stated(config: DataConfig) -> dict[str, str]:
    """Word in the column `split` -> its part, as `data.splits` says; "" for one that is left out."""
    parts = {getattr(config.splits, part): part for part in PARTS}
    return parts | dict.fromkeys(config.splits.ignore, "")


def _distinct(rows: Iterable[_Row], table: Path) -> list[_Row]:
    """Each image once, sorted by path. Lines that name an image again must say the same of it."""
    first: dict[str, _Row] = {}
    for row in rows:
        known = first.setdefault(row.path, row)
        for field in ("label", "split"):
            here, there = getattr(row, field), getattr(known, field)
            if here != there:
                what = f"{row.path!r} has the {field} {here!r}, and {there!r} in line {known.line}"
                raise _fault(what, table, row.line, "keep one of the two lines")
    return sorted(first.values(), key=lambda row: row.path)


def _check_files(rows: Iterable[_Row], roots: Sequence[str], table: Path) -> None:
    """Check that every file is there, and that no folder is a link out of the folder of the table."""
    root = roots[0]
    by_line = sorted(rows, key=lambda row: row.line)
    first_of_folder: dict[str, _Row] = {}
    for row in by_line:
        first_of_folder.setdefault(os.path.dirname(row.path), row)
    for folder, row in first_of_folder.items():
        if not any(is_inside(os.path.join(root, folder), allowed) for allowed in roots):
            raise _outside(row.path, table, row.line)
    missing = [row for row in by_line if not os.path.exists(os.path.join(root, row.path))]
    if missing:
        what = f"no file {missing[0].path!r}"
        if len(missing) > 1:
            what += f" (+{len(missing) - 1} more)"
        hint = "paths count from the folder of the table; mend the path, or remove the line"
        raise _fault(what, table, missing[0].line, hint, code="E-FILE")


def _listings(
    rows: Sequence[_Row], classes: tuple[str, ...], table: Path, roots: Sequence[str]
) -> dict[str, Callable[[], Listing]]:
    """Stored split -> a function that lists its files, which must be there."""
    number = {label: k for k, label in enumerate(classes)}

    def listed(part: str) -> Listing:
        chosen = [row for row in rows if row.split == part]
        _check_files(chosen, roots, table)
        labels = [number[row.label] for row in chosen]
        return Listing(classes, [row.path for row in chosen], labels, labels_in_paths=False)

    present = {row.split for row in rows}
    return {part: partial(listed, part) for part in PARTS if part in present}


def _located(rows: Iterable[_Row], root: str, table: Path, error: DataError) -> DataError:
    """The error; about an image it names its line of the table, about the folder the table."""
    lines = {os.path.join(root, row.path): f"{table}:{row.line}: {row.path}" for row in rows}
    where = (lines | {root: str(table)}).get(error.where, error.where)
    return DataError(error.what, where=where, hint=error.hint, code=error.code)


def _outside(path: str, table: Path, line: int) -> DataError:
    what = f"{path!r} leaves the folder of the table"
    return _fault(what, table, line, "put the images into that folder, or below it", code="E-FILE")


def _fault(what: str, table: Path, line: int, hint: str, code: str | None = None) -> DataError:
    return DataError(what, where=f"{table}:{line}", hint=hint, code=code)
