"""An earlier run gives way to a new one in its directory, and comes back when the new one comes to nothing.

The files of the earlier run move into a folder of the same directory, by renames alone:

    .moving     on their way there, or back; after a kill they go back
    .replaced   all are there, and the new run has begun; after a kill they go back if it has no result
    .tmp-...    the new run has something to show; what is left here is rubbish
"""

from __future__ import annotations

import os
from pathlib import Path

from robustcli.store.atomic import tmp_name
from robustcli.store.inventory import came_to_nothing, files_below, files_of, is_folder
from robustcli.store.leftovers import clear, remove_emptied
from robustcli.store.lock import NAME as LOCK_NAME
from robustcli.store.lock import RunLock
from robustcli.store.retention import remove

MOVING, REPLACED = ".moving", ".replaced"


def move_aside(run: Path, verb: str) -> None:
    """Move all files of the run of this verb aside; only the lock stays, which the caller holds.

    Raises LockError where a run inside is alive, and OSError; everything is then where it was.
    """
    paths = [path for path in files_of(run, verb) if path != LOCK_NAME]
    inner = [RunLock((run / path).parent) for path in paths if Path(path).name == LOCK_NAME]
    try:
        os.mkdir(run / MOVING)
        _move(paths, run, run / MOVING)
        os.rename(run / MOVING, run / REPLACED)
    except BaseException:
        _move_back(run)
        raise
    finally:
        for lock in inner:
            lock.close()


def put_back(run: Path, verb: str | None) -> None:
    """Remove the papers of the new run of this verb, and put the earlier one back in their place.

    What a failure of the new run has left stays beside it, unless the earlier run has its own.

    verb: None for a new run that had not begun. Raises OSError; `recover` then does the rest.
    """
    if verb is not None:
        clear(run, verb)
    os.rename(run / REPLACED, run / MOVING)
    _move_back(run)


def drop(run: Path) -> None:
    """Remove the earlier run for good. Raises OSError; the next start removes what is left."""
    rubbish = run / tmp_name("replaced-")
    os.rename(run / REPLACED, rubbish)
    remove(rubbish)


def recover(run: Path, verb: str | None) -> None:
    """Finish what a kill has interrupted, so that the directory holds one run. The caller holds its lock.

    verb: of the new run; None where it had not begun. Raises OSError.
    """
    if is_folder(run / MOVING):
        _move_back(run)
    if not is_folder(run / REPLACED):
        return
    if verb is None or came_to_nothing(run, verb):
        put_back(run, verb)
    else:
        drop(run)


def is_replacing(run: Path) -> bool:
    """Whether a run in this directory is about to give way to another, or was when it was killed."""
    return is_folder(run / MOVING) or is_folder(run / REPLACED)


def _move_back(run: Path) -> None:
    folder = run / MOVING
    if not is_folder(folder):
        return
    _move(list(files_below(folder)), folder, run)
    for place, _, _ in os.walk(folder, topdown=False):  # also folders to which a killed move brought nothing
        os.rmdir(place)


def _move(paths: list[str], source: Path, target: Path) -> None:
    """Move files by their paths below `source`, and remove the folders that this empties."""
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / path, target / path)
    remove_emptied(source, paths)
