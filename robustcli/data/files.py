"""Files from outside: opened without hanging, never outside their roots."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from robustcli.errors import DataError
from robustcli.store.identity import holds_runs

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LOOKED_AT = 2000  # entries of a folder that are looked at for the hint on links


def open_regular(path: str | Path, *, inside: Sequence[str] | None = None) -> BinaryIO:
    """The regular file, open for reading.

    A FIFO or a device is refused without waiting for it. With `inside`, a link that leaves all those folders
    is refused; the first of them is the data folder.

    Raises:
        DataError: E-FILE, with the path.
    """
    try:
        if inside is not None and os.path.islink(path):
            check_link(path, inside)
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


def check_link(path: str | Path, roots: Sequence[str]) -> None:
    """The link leads to something inside one of `roots`.

    Raises:
        DataError: E-FILE; the hint on a link that leaves them says what to set.
    """
    if not os.path.exists(os.path.realpath(path)):
        raise _file_fault("broken link", path, "remove it, or restore the file it points to")
    if not any(is_inside(path, root) for root in roots):
        target = _common_target(roots[0], str(path))
        hint = f"copy the files into the folder, or let links lead there: data.link_root={target}"
        raise _file_fault("link leaves the data folder", path, hint)


def is_inside(path: str | Path, root: str | Path) -> bool:
    """Whether `path` lies in the folder `root`, all links followed."""
    base = os.path.realpath(root)
    return os.path.commonpath([base, os.path.realpath(path)]) == base


def _common_target(root: str, path: str) -> str:
    """The folder that holds the targets of `path` and of other links of `root`, as far as a look tells."""
    found = {os.path.dirname(os.path.realpath(path))}
    base = os.path.realpath(root)
    for link in islice(_links(root), _LOOKED_AT):
        target = os.path.realpath(link)
        if os.path.exists(target) and not is_inside(target, base):
            found.add(os.path.dirname(target))
    return os.path.commonpath(found)


def _links(root: str) -> Iterator[str]:
    """Links below `root`; linked folders are not entered."""
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            if os.path.islink(os.path.join(folder, name)):
                yield os.path.join(folder, name)


def _file_fault(what: str, path: str | Path, hint: str) -> DataError:
    return DataError(what, where=str(path), hint=hint, code="E-FILE")


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries that are not hidden, sorted by name. Raises DataError when the folder cannot be listed."""
    try:
        with os.scandir(folder) as found:
            shown = [e for e in found if not e.name.startswith(".") and e.name != "__MACOSX"]
    except OSError as error:
        what = f"cannot list the folder: {error.strerror}"
        raise DataError(what, where=str(folder), hint="check the path and its permissions") from error
    return sorted(shown, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one. Raises DataError for a link that never ends."""
    try:
        return entry.is_dir()
    except OSError as error:
        what = f"cannot follow the link: {error.strerror}"
        raise _file_fault(what, entry.path, "remove it, or make it lead to a file") from error


def folders(folder: str | Path, roots: Sequence[str]) -> list[str]:
    """Names of the sub-folders, sorted, without runs of ours; a linked one must stay inside `roots`."""
    names = []
    for entry in entries(folder):
        if is_folder(entry) and not holds_runs(Path(entry.path)):
            if entry.is_symlink():
                check_link(entry.path, roots)
            names.append(entry.name)
    return names


def is_image(name: str) -> bool:
    """Whether the file name ends as an image's does."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


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
