"""Run directories: ``runs/<verb>/<name>-N/``, one per run, mode 0700, locked while the run lives."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustcli.errors import LockError, ResourceError, RobustCliError, UsageError, printable
from robustcli.runtime.atomic import TMP_PREFIX, tmp_name, write_atomic
from robustcli.runtime.disk import explained
from robustcli.runtime.lock import NAME as LOCK_NAME
from robustcli.runtime.lock import RunLock
from robustcli.runtime.retention import remove
from robustcli.runtime.run import Run, read_status

__all__ = ["Run", "open_run", "read_status", "resolve_run"]

LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def open_run(verb: str, name: str, *, out: str | None = None, resume: bool = False, overwrite: bool = False, base: Path = Path("runs")) -> Run:
    """The directory of a new or resumed run, locked, with status ``running``.

    Args:
        verb: "train", "eval", …: the sub-directory of `base`.
        name: of the run, `[A-Za-z0-9._-]{1,64}`.
        out: this directory exactly, instead of BASE/VERB/NAME-N.
        resume: go on in `out`, or in the NAME-N with the largest N; a new run when there is none.
        overwrite: empty `out` first; only a directory that a run of ours made.

    Raises UsageError (exit 2): bad name, `out` in use or not ours; LockError (exit 7); ResourceError (exit 6).
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"run name {printable(name)!r} is not [A-Za-z0-9._-]{{1,64}}", where="name")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if out is not None:
        run = _open_exact(Path(out), resume, overwrite)
    else:
        run = _open_numbered(base / verb, name, resume)
        _point_latest(run)
    with explained(run.path):
        for entry in list(run.path.iterdir()):
            if entry.name.startswith(TMP_PREFIX):
                remove(entry)
    run.status(state="running")
    return run


def resolve_run(path: Path) -> Path:
    """`path`, with ``runs/<verb>/latest`` followed where it is a one-line file instead of a link."""
    if path.name == LATEST and path.is_file():
        with explained(path):
            name = path.read_text("utf-8", "replace").strip()
        return path.with_name(name) if _NAME.fullmatch(name.rpartition("-")[0]) else path
    return path


def _open_exact(path: Path, resume: bool, overwrite: bool) -> Run:
    if path.exists() and not path.is_dir():
        raise UsageError("--out is a file", where=str(path), hint="name a directory")
    _make_dirs(path)
    with explained(path):
        ours = (path / LOCK_NAME).is_file()
        if not ours and any(path.iterdir()):  # checked before the lock, which would leave a file in somebody else's directory
            raise UsageError("directory is not empty and not a run of robustcli", where=str(path), hint="choose another --out")
    lock = RunLock(path)
    try:
        entries = [entry for entry in path.iterdir() if entry.name != LOCK_NAME]
        if entries and overwrite:
            with explained(path):
                for entry in entries:
                    remove(entry)
        elif entries and not resume:
            raise UsageError("run directory is not empty", where=str(path), hint="--resume goes on, --overwrite starts anew")
    except BaseException:
        lock.close()
        raise
    return Run(path, lock, resumed=bool(entries) and resume)


def _open_numbered(parent: Path, name: str, resume: bool) -> Run:
    _make_dirs(parent)
    with explained(parent):
        taken = re.compile(re.escape(name) + r"-([1-9]\d{0,8})", re.ASCII)
        numbers = {int(found[1]): entry.is_dir(follow_symlinks=False) for entry in os.scandir(parent) if (found := taken.fullmatch(entry.name))}
    last = max((number for number, is_dir in numbers.items() if is_dir), default=0)
    if resume and last:
        path = parent / f"{name}-{last}"
        return Run(path, RunLock(path), resumed=True)
    number = max(numbers, default=0)
    while True:
        number += 1
        path = parent / f"{name}-{number}"
        try:
            with explained(path):
                os.mkdir(path, 0o700)
            return Run(path, RunLock(path), resumed=False)
        except LockError:
            continue  # a concurrent --resume took the new directory
        except ResourceError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise  # otherwise another start took this number


def _make_dirs(path: Path) -> None:
    """`path` and its missing parents, each with mode 0700 (Path.mkdir gives the mode to the last one only)."""
    with explained(path):
        for place in reversed([path, *path.absolute().parents]):
            if not place.exists():
                place.mkdir(mode=0o700, exist_ok=True)


def _point_latest(run: Run) -> None:
    """``latest`` -> this run: a link, or a file with its name where links are not possible. A convenience: failing it fails no run."""
    latest, tmp = run.path.with_name(LATEST), run.path.with_name(tmp_name())
    try:
        try:
            os.symlink(run.path.name, tmp)
            os.replace(tmp, latest)
        except (OSError, NotImplementedError):
            remove(tmp)
            write_atomic(latest, run.path.name.encode() + b"\n")
    except (OSError, RobustCliError) as error:
        run.log(f"could not update {latest}: {error}")
