"""Which checkpoint directories of a run are there, which one a pointer names, which may go."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from robustcli.errors import CheckpointError
from robustcli.regular import read_regular
from robustcli.store.atomic import TMP_NAME, fsync_dir, tmp_name, write_atomic
from robustcli.store.disk import explained
from robustcli.store.manifest import STEP_DIR

ASIDE = ".old-"  # a directory that is being replaced by a new save of the same step waits under this name
_TAG = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)


def step_name(step: int) -> str:
    """``step-00001200``. Raises ValueError outside 0 <= step < 10^18."""
    if not 0 <= step < 10**18:
        raise ValueError(f"step {step} is not in [0, 10^18)")
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a directory that `candidates` has listed."""
    named = STEP_DIR.fullmatch(path.name.removeprefix(ASIDE))
    if named is None:
        raise ValueError(f"{path.name} is not a checkpoint directory")
    return int(named[1])


def candidates(root: Path) -> list[Path]:
    """The checkpoint directories in `root`, newest step first. Links do not count.

    A directory that waits aside counts where its place is empty.
    """
    with explained(root):
        if not root.is_dir():
            return []
        folders = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    in_place = {name: name for name in folders if _is_step(name)}
    aside = {name.removeprefix(ASIDE): name for name in folders if _is_step(name.removeprefix(ASIDE))}
    chosen = aside | in_place
    return sorted((root / name for name in chosen.values()), key=step_of, reverse=True)


def check_tag(tag: str) -> str:
    """`tag` itself. Raises ValueError: a tag is a lower-case word."""
    if not _TAG.fullmatch(tag):
        raise ValueError(f"checkpoint tag {tag!r} is not a lower-case word")
    return tag


def point(root: Path, tag: str, name: str) -> None:
    """Make `root`/`tag` name the directory `name`, atomically. Raises ResourceError."""
    write_atomic(root / check_tag(tag), name.encode() + b"\n")


def pointed(root: Path, tag: str) -> str | None:
    """The directory name that a pointer file holds, None without the file.

    Raises CheckpointError E-CKPT-FORMAT: not one line ``step-NNNNNNNN``.
    """
    path = root / check_tag(tag)
    try:
        text = read_regular(path, 64).decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        text = ""
    except CheckpointError as error:
        if error.code == "E-CKPT-MISSING":
            return None
        raise
    if not _is_step(text):
        raise CheckpointError(
            "not a pointer to a checkpoint",
            where=str(path),
            hint="write the name of a step directory into it",
            code="E-CKPT-FORMAT",
        )
    return text


def resolve_checkpoint(root: Path, tag: str = "last") -> Path:
    """The directory that `root`/`tag` points to.

    Raises CheckpointError: no pointer, a bad one, or nothing where it points.
    """
    name = pointed(root, tag)
    if name is None:
        raise CheckpointError(
            f"there is no {tag!r} checkpoint",
            where=str(root),
            hint="train first, or name another run",
            code="E-CKPT-MISSING",
        )
    by_name = {step_name(step_of(path)): path for path in candidates(root)}
    if name not in by_name:
        raise CheckpointError(
            f"{tag!r} points to {name}, which is not there", where=str(root), code="E-CKPT-MISSING"
        )
    return by_name[name]


def tagged(root: Path) -> set[str] | None:
    """Names under any pointer; None when a pointer cannot be read: then nothing may be called unused."""
    with explained(root):
        files = [entry.name for entry in os.scandir(root) if not entry.is_dir(follow_symlinks=False)]
    try:
        names = {pointed(root, file) for file in files if _TAG.fullmatch(file)}
    except CheckpointError:
        return None
    return {name for name in names if name is not None}


def prune(root: Path, step: int, keep: int) -> list[Path]:
    """Remove all but the newest `keep` checkpoints of steps <= `step`.

    Checkpoints under a pointer stay, and so do later ones. Returns what was removed. Raises ResourceError.
    """
    kept = tagged(root)
    if kept is None:
        return []
    older = [path for path in candidates(root) if step_of(path) <= step][keep:]
    unused = [path for path in older if step_name(step_of(path)) not in kept]
    drop(root, unused)
    return unused


def drop(root: Path, checkpoints: Sequence[Path]) -> None:
    """Remove checkpoint directories of `root`, only under the lock of their run. Raises ResourceError."""
    with explained(root):
        for path in checkpoints:
            # Renamed first: a kill then leaves what `sweep` knows as rubbish, not half a checkpoint.
            doomed = root / tmp_name("prune-")
            os.replace(path, doomed)
            remove(doomed)


def sweep(root: Path) -> list[Path]:
    """Remove what a killed save left in `root`; put back a directory that was set aside and not yet replaced.

    Only for the owner of the run (under its lock). Returns what was removed. Raises ResourceError.
    """
    removed: list[Path] = []
    with explained(root):
        if not root.is_dir():
            return removed
        for path in sorted(root.iterdir()):
            if _put_back(path):
                continue
            if _is_aside(path) or TMP_NAME.fullmatch(path.name):
                remove(path)
                removed.append(path)
    return removed


def remove(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a directory tree; absent is fine. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_back(path: Path) -> bool:
    """Whether `path` waited aside and its place was empty: it is then in its place again."""
    if not _is_aside(path):
        return False
    place = path.with_name(path.name.removeprefix(ASIDE))
    if os.path.lexists(place):
        return False
    os.replace(path, place)
    fsync_dir(path.parent)
    return True


def _is_aside(path: Path) -> bool:
    return path.name.startswith(ASIDE) and _is_step(path.name.removeprefix(ASIDE))


def _is_step(name: str) -> bool:
    return STEP_DIR.fullmatch(name) is not None
