"""How the files of a start are removed: those of a run that has come to nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from robustcli.store.inventory import (
    FOLDERS,
    files_of,
    holds_no_result,
    holds_nothing_else,
    is_folder,
    is_paper,
)
from robustcli.store.lock import NAME as LOCK_NAME

_KNOWN_BY = ("status.json", "run.json")


def clear(run: Path, verb: str) -> None:
    """Remove what a start of this verb wrote; results stay, the lock, and all that is no run's.

    What the run is known by goes last, so that a kill leaves a run. Raises OSError.
    """
    papers = [path for path in files_of(run, verb) if path != LOCK_NAME and is_paper(run, path)]
    for path in papers:
        if path not in _KNOWN_BY:
            os.unlink(run / path)
    remove_emptied(run, [*papers, *(f"{folder}/x" for folder in FOLDERS)])
    for path in _KNOWN_BY:
        if path in papers:
            os.unlink(run / path)


def remove_emptied(root: Path, paths: Sequence[str]) -> None:
    """Remove the folders between `root` and each of the paths below it that hold nothing any more."""
    folders = {parent for path in paths for parent in PurePosixPath(path).parents if parent.name}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        place = root / folder
        with suppress(OSError):  # not empty
            if is_folder(place):
                os.rmdir(place)


def remove_without_result(run: Path, verb: str) -> bool:
    """Remove the directory of a run that holds no result, under the caller's lock; whether it was removed.

    Only files of a start and empty directories are removed, so that what somebody puts there meanwhile stays.
    A kill in between leaves a directory that holds no result.
    """
    try:
        if not (holds_nothing_else(run, verb) and holds_no_result(run, verb)):
            return False
        clear(run, verb)
        os.unlink(run / LOCK_NAME)
    except OSError:
        return False
    with suppress(OSError):
        os.rmdir(run)
    return True
