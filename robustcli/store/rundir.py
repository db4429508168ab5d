"""Run directories: ``runs/<verb>/<name>-N/``, one per run, locked while the run lives.

They follow the umask of the user. See docs/runs.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from robustcli.errors import LockError, ResourceError, UsageError, printable
from robustcli.store.atomic import TMP_NAME
from robustcli.store.disk import explained
from robustcli.store.identity import RUNS, Identity, identity_of
from robustcli.store.inventory import holds_no_result
from robustcli.store.latest import RUN_NAME
from robustcli.store.leftovers import clear
from robustcli.store.lock import NAME as LOCK_NAME
from robustcli.store.lock import RunLock, is_holder
from robustcli.store.replacing import MOVING, REPLACED, is_replacing, recover
from robustcli.store.run import Run
from robustcli.store.sources import Source, check_apart

_RESUMED = ("train", "eval", "certify")  # verbs with --resume


def open_run(
    verb: str,
    name: str,
    *,
    out: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    base: Path = RUNS,
    numbered: bool | None = None,
    sources: Sequence[Source] = (),
    begin: bool = True,
) -> Run:
    """The directory of a new or resumed run, locked, with status ``running``.

    Args:
        verb: the sub-directory of `base`, such as "train" or "eval".
        name: of the run, `[A-Za-z0-9._-]{1,64}`.
        out: this directory exactly, instead of BASE/VERB/NAME-N.
        resume: go on in `out`, or in the NAME-N with the largest N; a new run when there is none.
        overwrite: replace the run in `out`; only its files are touched. A run without a result is replaced
            in any case. Together with `resume`: replace an earlier run, and go on with one that had replaced
            it, as a launcher's restart needs it.
        numbered: whether BASE/VERB/latest may come to name this run. None means: yes, unless `out` is given.
        sources: what the run reads. `out` must lie apart from it.
        begin: False leaves `begin` of a run that resumes or replaces another one to the caller.

    Raises UsageError (exit 2): bad name, `out` not empty or not ours, or E-RESUME: another verb's run;
    LockError (exit 7): `out` in use; ResourceError (exit 6).
    """
    if not RUN_NAME.fullmatch(name):
        raise UsageError(f"run name {printable(name)!r} is not [A-Za-z0-9._-]{{1,64}}", where="name")
    if out is not None:
        check_apart(Path(out), sources)
        run = _open_exact(Path(out), verb, resume, overwrite)
    else:
        run = _open_numbered(base / verb, name, resume)
    if numbered is None:
        numbered = out is None
    run.numbered = numbered
    if begin or not run.takes_over:
        try:
            run.begin()
        except BaseException:
            run.close()
            raise
    return run


def newest_run(verb: str, name: str, *, out: str | None = None, base: Path = RUNS) -> Path | None:
    """The directory that `open_run` would resume, None when there is none. Raises ResourceError."""
    if out is not None:
        with explained(Path(out)):
            return Path(out) if Path(out).is_dir() else None
    parent = base / verb
    with explained(parent):
        if not parent.is_dir():
            return None
    numbers = [number for number, is_dir in _numbers(parent, name).items() if is_dir]
    if not numbers:
        return None
    return parent / f"{name}-{max(numbers)}"


def _open_exact(path: Path, verb: str, resume: bool, overwrite: bool) -> Run:
    with explained(path):
        if path.exists() and not path.is_dir():
            raise UsageError("--out is a file", where=str(path), hint="name a directory")
    _make_dirs(path)
    return _opened(path, verb, resume, overwrite)


def _opened(path: Path, verb: str, resume: bool, overwrite: bool) -> Run:
    """The run in a directory that is there. Nothing in it is touched but what a kill has left half done."""
    _check_ours(path)
    lock = RunLock(path)
    try:
        with explained(path):
            begun_anew = is_replacing(path)
            found = _recovered(path)
        if found is None:
            return Run(path, lock, verb=verb, resumed=False)
        if resume and not (overwrite and begun_anew):
            _check_verb(path, verb, found)
            return Run(path, lock, verb=verb, resumed=True)
        with explained(path):
            if holds_no_result(path, found.verb):
                clear(path, found.verb)
                return Run(path, lock, verb=verb, resumed=False)
        if not overwrite:
            raise _not_empty(path, verb, found)
        return Run(path, lock, verb=verb, resumed=False, replaces=found)
    except BaseException:
        lock.close()
        raise


def _check_ours(path: Path) -> None:
    """Raises UsageError for a directory with files of somebody else and no run of ours.

    Asked before the lock is taken: the lock would leave its file there.
    """
    with explained(path):
        if not _holds_anything(path) or identity_of(path) is not None:
            return
        inside = [path / name for name in (MOVING, REPLACED) if is_replacing(path)]
        if any(identity_of(folder) for folder in inside):
            return
    raise UsageError(
        "directory is not empty and not a run of robustcli", where=str(path), hint="choose another --out"
    )


def _holds_anything(path: Path) -> bool:
    """Whether a directory holds more than the lock and half-written files of a start that was killed."""
    for entry in path.iterdir():
        is_lock = entry.name == LOCK_NAME and is_holder(entry)
        if not is_lock and not TMP_NAME.fullmatch(entry.name):
            return True
    return False


def _recovered(path: Path) -> Identity | None:
    """The run in the directory, after what a kill has interrupted was finished."""
    if is_replacing(path):
        begun = identity_of(path)
        recover(path, None if begun is None else begun.verb)
    return identity_of(path)


def _check_verb(path: Path, verb: str, found: Identity) -> None:
    """Raises UsageError E-RESUME for the run of another verb."""
    if found.verb not in ("", verb):
        raise UsageError(
            f"cannot resume: this is a run of `{found.verb}`, not of `{verb}`",
            where=str(path),
            hint="choose another --out",
            code="E-RESUME",
        )


def _not_empty(path: Path, verb: str, found: Identity) -> UsageError:
    """The error for a run with a result, which is replaced only when asked."""
    if found.verb not in ("", verb):
        what = f"the directory holds a run of `{found.verb}`"
        return UsageError(
            what, where=str(path), hint="choose another --out; --overwrite would replace that run"
        )
    hint = "--overwrite starts anew"
    if verb in _RESUMED:
        hint = f"--resume goes on, {hint}"
    return UsageError("run directory is not empty", where=str(path), hint=hint)


def _open_numbered(parent: Path, name: str, resume: bool) -> Run:
    _make_dirs(parent)
    verb = parent.name
    if resume:
        last = newest_run(verb, name, base=parent.parent)
        if last is not None:
            return _opened(last, verb, True, False)
    number = max(_numbers(parent, name), default=0)
    while True:
        number += 1
        path = parent / f"{name}-{number}"
        try:
            with explained(path):
                os.mkdir(path)
            return Run(path, RunLock(path), verb=verb, resumed=False, made=True)
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
    """Make `path` and its missing parents. Raises ResourceError."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
