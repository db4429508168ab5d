"""Run directories: ``runs/<verb>/<name>-N/``, one per run, mode 0700, locked while the run lives.

See docs/runs.md.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustcli.errors import LockError, ResourceError, UsageError, printable
from robustcli.store.atomic import TMP_PREFIX
from robustcli.store.disk import explained
from robustcli.store.latest import RUN_NAME
from robustcli.store.leftovers import clear, holds_no_result
from robustcli.store.lock import NAME as LOCK_NAME
from robustcli.store.lock import RunLock
from robustcli.store.retention import remove
from robustcli.store.run import Run

RUNS = Path("runs")


def open_run(
    verb: str,
    name: str,
    *,
    out: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    base: Path = RUNS,
    numbered: bool | None = None,
) -> Run:
    """The directory of a new or resumed run, locked, with status ``running``.

    Args:
        verb: the sub-directory of `base`, such as "train" or "eval".
        name: of the run, `[A-Za-z0-9._-]{1,64}`.
        out: this directory exactly, instead of BASE/VERB/NAME-N.
        resume: go on in `out`, or in the NAME-N with the largest N; a new run when there is none.
        overwrite: empty `out` first; only a directory that a run of ours made. A directory without a result
            counts as empty.
        numbered: whether BASE/VERB/latest may come to name this run. None means: yes, unless `out` is given.

    Raises UsageError (exit 2): bad name, `out` not empty or not ours; LockError (exit 7): `out` in use;
    ResourceError (exit 6).
    """
    if not RUN_NAME.fullmatch(name):
        raise UsageError(f"run name {printable(name)!r} is not [A-Za-z0-9._-]{{1,64}}", where="name")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if out is not None:
        run = _open_exact(Path(out), resume, overwrite)
    else:
        run = _open_numbered(base / verb, name, resume)
    if numbered is None:
        numbered = out is None
    run.numbered = numbered
    with explained(run.path):
        for entry in list(run.path.iterdir()):
            if entry.name.startswith(TMP_PREFIX):
                remove(entry)
    run.status(state="running")
    return run


def newest_run(verb: str, name: str, *, out: str | None = None, base: Path = RUNS) -> Path | None:
    """The directory that `open_run` would resume, None when there is none. Raises ResourceError."""
    if out is not None:
        return Path(out) if Path(out).is_dir() else None
    parent = base / verb
    if not parent.is_dir():
        return None
    numbers = [number for number, is_dir in _numbers(parent, name).items() if is_dir]
    if not numbers:
        return None
    return parent / f"{name}-{max(numbers)}"


def _open_exact(path: Path, resume: bool, overwrite: bool) -> Run:
    if path.exists() and not path.is_dir():
        raise UsageError("--out is a file", where=str(path), hint="name a directory")
    _make_dirs(path)
    _check_ours(path)
    lock = RunLock(path)
    try:
        entries = [entry for entry in path.iterdir() if entry.name != LOCK_NAME]
        if entries and not resume:
            _empty(path, entries, overwrite)
    except BaseException:
        lock.close()
        raise
    return Run(path, lock, resumed=bool(entries) and resume)


def _check_ours(path: Path) -> None:
    """Raises UsageError for a directory with files of somebody else.

    Asked before the lock is taken: the lock would leave its file there.
    """
    with explained(path):
        if not (path / LOCK_NAME).is_file() and any(path.iterdir()):
            raise UsageError(
                "directory is not empty and not a run of robustcli",
                where=str(path),
                hint="choose another --out",
            )


def _empty(path: Path, entries: list[Path], overwrite: bool) -> None:
    """Make room for a new run. Raises UsageError when there is a result and `overwrite` is not given."""
    if overwrite:
        with explained(path):
            for entry in entries:
                remove(entry)
    elif holds_no_result(path):
        with explained(path):
            clear(path)
    else:
        raise UsageError(
            "run directory is not empty",
            where=str(path),
            hint="--resume goes on, --overwrite starts anew",
        )


def _open_numbered(parent: Path, name: str, resume: bool) -> Run:
    _make_dirs(parent)
    if resume:
        last = newest_run(parent.name, name, base=parent.parent)
        if last is not None:
            return Run(last, RunLock(last), resumed=True)
    number = max(_numbers(parent, name), default=0)
    while True:
        number += 1
        path = parent / f"{name}-{number}"
        try:
            with explained(path):
                os.mkdir(path, 0o700)
            return Run(path, RunLock(path), resumed=False, made=True)
        except LockError:
            continue  # a concurrent --resume took the new directory
        except ResourceError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise  # otherwise another start took this number


def _numbers(parent: Path, name: str) -> dict[int, bool]:
    """Each N for which there is a NAME-N, and whether that is a directory."""
    taken = re.compile(re.escape(name) + r"-([1-9]\d{0,8})", re.ASCII)
    with explained(parent):
        return {
            int(match[1]): entry.is_dir(follow_symlinks=False)
            for entry in os.scandir(parent)
            if (match := taken.fullmatch(entry.name))
        }


def _make_dirs(path: Path) -> None:
    """Make `path` and its missing parents, each with mode 0700; Path.mkdir gives it to the last one only."""
    with explained(path):
        for place in reversed([path, *path.absolute().parents]):
            if not place.exists():
                place.mkdir(mode=0o700, exist_ok=True)
