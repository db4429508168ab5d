"""Run directories without a result: what a start writes before its first result, and how it is removed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from robustcli.store.atomic import TMP_PREFIX
from robustcli.store.lock import NAME as LOCK_NAME

#: Files and folders of a start. Any other name, and any line of a record, is a result or somebody else's.
_PAPERS = {LOCK_NAME, "status.json", "log.txt", "config.resolved.yaml", "env.json", "header.json"}
_FOLDERS = {"checkpoints", "images", "shards", "plots", "tensorboard", "natural", "robust", "attack"}


def holds_no_result(run: Path) -> bool:
    """Whether a run directory holds only what a start writes before its first result. Raises OSError."""
    for place, folders, files in os.walk(run, onerror=_raise):
        here = Path(place)
        if any(name not in _FOLDERS or (here / name).is_symlink() for name in folders):
            return False
        if not all(_is_paper(here / name) for name in files):
            return False
    return True


def _is_paper(file: Path) -> bool:
    """Whether a start writes such a file: one of `_PAPERS`, a temporary one, or a record without a line."""
    if file.is_symlink():
        return False
    if file.name in _PAPERS or file.name.startswith(TMP_PREFIX) or file.parent.name == "tensorboard":
        return True
    return file.suffix == ".jsonl" and not file.stat().st_size


def clear(run: Path) -> None:
    """Empty a run directory that holds no result; only its lock stays, which the caller holds.

    Raises OSError. One reason is a file that was added after `holds_no_result` was asked: it stays.
    """
    for place, folders, files in os.walk(run, topdown=False):
        here = Path(place)
        for name in files:
            is_lock = name == LOCK_NAME and here == run
            if not is_lock and _is_paper(here / name):
                os.unlink(here / name)
        for name in folders:
            os.rmdir(here / name)


def remove_without_result(run: Path) -> bool:
    """Remove the directory of a run that holds no result, under the caller's lock; whether it was removed.

    Only files of a start and empty directories are removed, so that what somebody puts there meanwhile stays.
    A kill in between leaves a directory that holds no result.
    """
    try:
        if not holds_no_result(run):
            return False
        clear(run)
        os.unlink(run / LOCK_NAME)
    except OSError:
        return False
    with suppress(OSError):
        os.rmdir(run)
    return True


def _raise(error: OSError) -> None:
    raise error
