"""Run directories without a result: what a start writes before its first result, how it is recognised and taken back."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from robustcli.store.atomic import TMP_PREFIX
from robustcli.store.lock import NAME as LOCK_NAME

#: Written before the first result. Every other name, and every line of a record, is a result, or somebody else's.
_PAPERS = {LOCK_NAME, "status.json", "log.txt", "config.resolved.yaml", "env.json", "header.json"}
_FOLDERS = {"checkpoints", "images", "shards", "plots", "tensorboard", "natural", "robust", "attack"}


def holds_no_result(run: Path) -> bool:
    """Whether a run directory holds nothing but what a start writes before its first result. Raises OSError."""
    for place, folders, files in os.walk(run, onerror=_raise):
        here = Path(place)
        if any(name not in _FOLDERS or (here / name).is_symlink() for name in folders):
            return False
        if not all(_is_paper(here / name) for name in files):
            return False
    return True


def _is_paper(file: Path) -> bool:
    if file.is_symlink():
        return False
    named = file.name in _PAPERS or file.name.startswith(TMP_PREFIX) or file.parent.name == "tensorboard"
    return named or (file.suffix == ".jsonl" and not file.stat().st_size)


def clear(run: Path) -> None:
    """Empty a run directory that holds no result; only its lock stays, which the caller holds.

    Raises OSError: also when something else has come since the look, which stays.
    """
    for place, folders, files in os.walk(run, topdown=False):
        for name in files:
            if (name != LOCK_NAME or Path(place) != run) and _is_paper(Path(place) / name):
                os.unlink(os.path.join(place, name))
        for name in folders:
            os.rmdir(os.path.join(place, name))


def take_back(run: Path) -> bool:
    """Remove the directory of a run that holds no result, and whose lock the caller holds; whether it was removed.

    Files by name, directories only when they are empty: what somebody put there meanwhile stays. A kill in between leaves a directory
    that holds no result.
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
