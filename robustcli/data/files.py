"""Files from outside: opened without hanging, never outside their root, listed in a fixed order."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from robustcli.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | Path, *, inside: str | None = None) -> BinaryIO:
    """The regular file, open for reading.

    A FIFO or a device is refused without waiting for it; with `inside`, so is a link that leaves that folder.

    Raises:
        DataError: E-FILE, with the path.
    """
    try:
        if inside is not None and os.path.islink(path):
            _check_link(path, inside)
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"cannot open the file: {reason}",
            where=str(path),
            hint="check that it exists and may be read",
            code="E-FILE",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(
            "not a regular file (folder, FIFO, socket or device)",
            where=str(path),
            hint="remove it, or put a file there",
            code="E-FILE",
        )
    return os.fdopen(descriptor, "rb")


def _check_link(path: str | Path, root: str) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise DataError(
            "broken link", where=str(path), hint="remove it, or restore the file it points to", code="E-FILE"
        )
    base = os.path.realpath(root)
    if os.path.commonpath([base, target]) != base:
        raise DataError(
            "link leaves the data folder",
            where=str(path),
            hint="copy the file into the folder",
            code="E-FILE",
        )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Entries that are not hidden, sorted by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not entry.name.startswith(".") and entry.name != "__MACOSX"),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise DataError(
            f"cannot list the folder: {error.strerror}",
            where=str(folder),
            hint="check the path and its permissions",
        ) from error


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
    """Images of one split: names of the classes, paths relative to the root (sorted), class of each, files left aside."""

    classes: tuple[str, ...]
    paths: list[str]
    labels: list[int]
    ignored: int


def list_images(root: Path, split: str) -> Listing:
    """Images of `root/split/<class>/`, by class then name; hidden files are not seen, other kinds are counted as ignored.

    Raises:
        DataError: no class folder, a class without images, a folder inside a class folder, a class name with control characters.
    """
    base = root / split if split else root
    classes = folders(base, root)
    if not classes:
        raise DataError("no class folders", where=str(base), hint="put images into <split>/<class>/<image>")
    paths: list[str] = []
    labels: list[int] = []
    ignored = 0
    for label, name in enumerate(classes):
        if not name.isprintable():
            raise DataError(
                f"class folder name {name!r} has control or undecodable characters",
                where=str(base),
                hint="rename it",
            )
        before = len(paths)
        for entry in _entries(base / name):
            if entry.is_dir():
                raise DataError(
                    "a folder inside a class folder",
                    where=entry.path,
                    hint="images lie directly in <split>/<class>/",
                )
            if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                ignored += 1
                continue
            paths.append(os.path.join(split, name, entry.name))
        if len(paths) == before:
            raise DataError(
                f"class {name!r} has no images",
                where=str(base / name),
                hint=f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folder",
            )
        labels.extend([label] * (len(paths) - before))
    return Listing(tuple(classes), paths, labels, ignored)
