"""The images of one split in class folders, or in one folder beside a table of labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from robustcli.data.files import Listing, check_link, entries, folders, is_folder, is_image, open_regular
from robustcli.errors import DataError

_DEEPEST = 16  # folders below a class folder
IMAGES = "images"  # the folder beside a table of labels, or between a split and its classes
_MOST_BYTES = 256 * 2**20


def class_folders(root: Path, split: str, roots: Sequence[str]) -> list[str]:
    """Names of the class folders of `root/split`, sorted; `split` may be "".

    Raises:
        DataError: there is none, or a name has control characters.
    """
    base = root / split
    names = folders(base, roots)
    if not names:
        hint = "put images into <split>/<class>/<image>, or name them in a table: csv:PATH"
        raise DataError("no class folders", where=str(base), hint=hint)
    odd = next((name for name in names if not name.isprintable()), None)
    if odd is not None:
        what = f"class folder name {odd!r} has control or undecodable characters"
        raise DataError(what, where=str(base), hint="rename it")
    return names


def list_images(root: Path, split: str, classes: Sequence[str], roots: Sequence[str]) -> Listing:
    """Images of `root/split/<class>/`, also in folders below it, by class then path.

    Hidden files are not seen. Files that are not images are counted as ignored. A class without a folder, or
    with an empty one, has no images.

    Args:
        root: of the data set.
        split: folder below it, or "".
        classes: all classes in the order of their labels.
        roots: folders that links may lead into.
    """
    present = set(folders(root / split, roots))
    paths: list[str] = []
    labels: list[int] = []
    ignored = 0
    for label, name in enumerate(classes):
        if name in present:
            images, others = _images(root / split / name, roots)
            paths += [os.path.join(split, name, image) for image in sorted(images)]
            labels += [label] * len(images)
            ignored += others
    return Listing(tuple(classes), paths, labels, ignored)


def _images(folder: Path, roots: Sequence[str], depth: int = 0) -> tuple[list[str], int]:
    """Paths of the images below a class folder, relative to it, and the number of other files."""
    if depth > _DEEPEST:
        what = f"folders inside folders, more than {_DEEPEST} deep: a link that leads back?"
        raise DataError(what, where=str(folder), hint="remove the link", code="E-FILE")
    images: list[str] = []
    others = 0
    for entry in entries(folder):
        if is_folder(entry):
            if entry.is_symlink():
                check_link(entry.path, roots)
            below, more = _images(Path(entry.path), roots, depth + 1)
            images += [os.path.join(entry.name, name) for name in below]
            others += more
        elif is_image(entry.name):
            images.append(entry.name)
        else:
            others += 1
    return images, others


def labels_table(folder: Path) -> Path | None:
    """The table of labels in the folder of a split, as Tiny-ImageNet's `val_annotations.txt`."""
    table = folder / f"{folder.name.lower()}_annotations.txt"
    if table.is_file() and (folder / IMAGES).is_dir():
        return table
    return None


def table_classes(table: Path) -> list[str]:
    """The class names in a table of labels, sorted."""
    return sorted({name for _, name in _rows(table)})


def list_table(root: Path, split: str, table: Path, classes: Sequence[str]) -> Listing:
    """Images of `root/split/images/`, labelled by a table of file, class and more, with tabs.

    Raises:
        DataError: a damaged table, or a class that is not among `classes`.
    """
    number = {name: k for k, name in enumerate(classes)}
    rows = sorted(set(_rows(table)))
    unknown = next((name for _, name in rows if name not in number), None)
    if unknown is not None:
        what = f"the class {unknown!r} has no folder among the training images"
        raise DataError(what, where=str(table), hint="add it, or remove its lines", code="E-CLASS")
    paths = [os.path.join(split, IMAGES, file) for file, _ in rows]
    return Listing(tuple(classes), paths, [number[name] for _, name in rows], labels_in_paths=False)


def _rows(table: Path) -> list[tuple[str, str]]:
    """(file, class) of each line. Only the base name of a file counts, so none leaves the folder."""
    with open_regular(table) as stream:
        text = stream.read(_MOST_BYTES).decode("utf-8", "replace")
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or not (fields[0].isprintable() and fields[1].isprintable()):
            hint = "each line is FILE, a tab, CLASS"
            raise DataError("not a line of file and class", where=f"{table}:{number}", hint=hint)
        rows.append((os.path.basename(fields[0]), fields[1]))
    return rows
