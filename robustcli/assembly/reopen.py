"""How rank 0 opens its run directory, also after a restart by a launcher."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from robustcli.runtime.signals import heed
from robustcli.runtime.team import heed_launcher
from robustcli.store.atomic import write_atomic
from robustcli.store.follower import Follower

_POLL = 0.02  # seconds between two looks for that note
RUN_FILE = "ROBUSTCLI_RUN_FILE"  # where rank 0 notes its run directory for a restart; set by our launcher


class Opening(NamedTuple):
    """The arguments of `open_run` with these names; it says what resume and overwrite mean together."""

    out: str | None
    resume: bool
    overwrite: bool


def opening(out: str | None, resume: bool, overwrite: bool) -> Opening:
    """How rank 0 opens its run directory: as the user asked, or after a launcher's restart to resume.

    After a restart the directory is the one noted by `note_run`. Without a note this job has begun no run:
    what lies in `out` is an earlier one, or a start without a result, which any opening replaces. Under
    torchrun nothing is ever noted: the newest run of the name, or `out`.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return Opening(out, resume, overwrite)
    note = os.environ.get(RUN_FILE)
    if note is None:  # torchrun: the newest run of this name, or `out`
        return Opening(out, True, overwrite)
    path = Path(note)
    if path.is_file() and (noted := path.read_text("utf-8")):
        return Opening(noted, True, overwrite)
    return Opening(out, resume, overwrite)


def following() -> Follower:
    """The run that rank 0 of this launch opens. Its path is known when that run has begun.

    Who asks for the path before waits. Raises Interrupted, or PeerError where the launcher is gone.
    """

    def path() -> Path:
        note = Path(os.environ[RUN_FILE])
        while not note.is_file():
            heed()
            heed_launcher()
            time.sleep(_POLL)
        return Path(note.read_text("utf-8"))

    return Follower(path, resumed=False)


def found_by_name() -> bool:
    """Whether a restart would look for this run by its name: torchrun notes no directory."""
    return "TORCHELASTIC_RUN_ID" in os.environ and RUN_FILE not in os.environ


def note_run(path: Path) -> None:
    """Write the run directory where our launcher's next restart reads it; without our launcher do nothing.

    Rank 0 calls it when the run has begun: before, the directory may hold an earlier one.
    """
    note = os.environ.get(RUN_FILE)
    if note is not None:
        write_atomic(Path(note), str(path.absolute()).encode())
