"""``current``: the guard that is deployed, a link that is moved at once, or a one-line file without links.

A reader sees the old target or the new one, whatever kills the writer.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from robustcli.store.atomic import fsync_dir, tmp_name, write_atomic
from robustcli.store.disk import explained
from robustcli.store.retention import remove

CURRENT = "current"
_LONGEST = 4096  # bytes of a one-line file


def target_of(link: Path) -> Path | None:
    """The directory that ``current`` names, below the folder of the link; None where it is neither kind."""
    with explained(link):
        if link.is_symlink():
            return link.parent / os.readlink(link)
        if not link.is_file() or link.stat().st_size > _LONGEST:
            return None
        named = PurePosixPath(link.read_text("utf-8", "replace").strip())
    if not named.parts or named.is_absolute() or not (link.parent / named).is_dir():
        return None
    return link.parent / named


def relative(target: Path, link: Path) -> str:
    """`target` as seen from the folder of `link`, with forward slashes: both can be moved together."""
    return Path(os.path.relpath(os.path.realpath(target), os.path.realpath(link.parent))).as_posix()


def point(link: Path, target: str) -> None:
    """Make ``current`` name `target`, a path as `relative` gives it, atomically. Raises ResourceError."""
    tmp = link.with_name(tmp_name())
    with explained(link):
        try:
            os.symlink(target, tmp, target_is_directory=True)
        except (OSError, NotImplementedError):  # a system, or a disk, without links
            remove(tmp)
            write_atomic(link, f"{target}\n".encode())
            return
        try:
            os.replace(tmp, link)
        except BaseException:
            remove(tmp)
            raise
        fsync_dir(link.parent)
