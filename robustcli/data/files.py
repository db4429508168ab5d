"""Files from outside: opened without hanging, never outside their root, listed in a fixed order."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from robustcli.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | Path, *, inside: str | None = None) -> BinaryIO:
    """The regular file, open for reading.

    A FIFO or a device is refused without waiting for it. With `inside`, a link that leaves that folder is
    refused.

    Raises:
        DataError: E-FILE, with the path.
    """
    try:
        if inside is not None and os.path.islink(path):
            _check_link(path, inside)
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "check that it exists and may be read"
        raise _file_fault(f"cannot open the file: {reason}", path, hint) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        what = "not a regular file (folder, FIFO, socket or device)"
        raise _file_fault(what, path, "remove it, or put a file there")
    return os.fdopen(descriptor, "rb")


def _check_link(path: str | Path, root: str) -> None:
    if not os.path.exists(os.path.realpath(path)):
        raise _file_fault("broken link", path, "remove it, or restore the file it points to")
    if not is_inside(path, root):
        raise _file_fault("link leaves the data folder", path, "copy the file into the folder")


def is_inside(path: str | Path, root: str | Path) -> bool:
    """Whether `path` lies in the folder `root`, all links followed."""
    base = os.path.realpath(root)
    return os.path.commonpath([base, os.path.realpath(path)]) == base


def _file_fault(what: str, path: str | Path, hint: str) -> DataError:
    return DataError(what, where=str(path), hint=hint, code="E-FILE")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Entries that are not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            shown = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    except OSError as error:
        what = f"cannot list the folder: {error.strerror}"
        raise DataError(what, where=str(folder), hint="check the path and its permissions") from error
    return sorted(shown, key=lambda entry: entry.name)


def folders(folder: Path, root: Path) -> list[str]:
    """Names of the sub-folders, sorted; a linked one must stay inside `root`."""
    names = []
    for entry in _entries(folder):
        if entry.is_dir():
            if entry.is_symlink():
                _check_link(entry.path, str(root))
            names.append(entry.name)
    return names


@dataclass(frozen=True)
class Listing:
    """The images of one split.

    classes: their names, class k is classes[k].
    paths: of the files, relative to the root, in the order of the ids.
    labels: class of each file.
    ignored: how many other files lie beside them.
    labels_in_paths: whether the paths say the labels, so that a digest of the paths covers both.
    """

    classes: tuple[str, ...]
    paths: list[str]
    labels: list[int]
    ignored: int = 0
    labels_in_paths: bool = True


def all_paths(listings: Mapping[str, Listing]) -> list[str]:
    """The files of all splits, one split after the other."""
    paths: list[str] = []
    for listing in listings.values():
        paths += listing.paths
    return paths


def list_images(root: Path, split: str) -> Listing:
    """Images of `root/split/<class>/`, by class then name; `split` may be "".

    Hidden files are not seen. Files that are not images are counted as ignored.

    Raises:
        DataError: no class folder, a class without images, a folder inside a class folder, a class name with
            control characters.
    """
    base = root / split
    classes = folders(base, root)
    if not classes:
        raise DataError("no class folders", where=str(base), hint="put images into <split>/<class>/<image>")
    paths: list[str] = []
    labels: list[int] = []
    ignored = 0
    for label, name in enumerate(classes):
        if not name.isprintable():
            what = f"class folder name {name!r} has control or undecodable characters"
            raise DataError(what, where=str(base), hint="rename it")
        images, others = _images(base / name)
        paths += [os.path.join(split, name, image) for image in images]
        labels += [label] * len(images)
        ignored += others
    return Listing(tuple(classes), paths, labels, ignored)


def _images(folder: Path) -> tuple[list[str], int]:
    """File names of the images in a class folder, and the number of other files."""
    images: list[str] = []
    others = 0
    for entry in _entries(folder):
        if entry.is_dir():
            hint = "images lie directly in <split>/<class>/"
            raise DataError("a folder inside a class folder", where=entry.path, hint=hint)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            images.append(entry.name)
        else:
            others += 1
    if not images:
        hint = f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folder"
        raise DataError(f"class {folder.name!r} has no images", where=str(folder), hint=hint)
    return images, others
