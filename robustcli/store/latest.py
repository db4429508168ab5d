"""``runs/<verb>/latest``: the newest run of a verb that has something to show."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustcli.store.atomic import tmp_name, write_atomic
from robustcli.store.disk import explained
from robustcli.store.retention import remove

LATEST = "latest"
RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def resolve_run(path: Path) -> Path:
    """`path` with every ``latest`` in it, a link or a one-line file, replaced by the run that it names now."""
    found = Path()
    for part in path.parts:
        found = found / part
        if part == LATEST:
            found = _named(found)
    return found


def _named(place: Path) -> Path:
    with explained(place):
        if place.is_symlink():
            return place.parent / os.readlink(place)
        name = place.read_text("utf-8", "replace").strip() if place.is_file() else ""
    return place.with_name(name) if RUN_NAME.fullmatch(name.rpartition("-")[0]) else place


def point_latest(run: Path) -> None:
    """``latest`` beside `run` -> `run`, atomically: a link, or a file with its name where links are not possible. Raises OSError, ResourceError."""
    latest, tmp = run.with_name(LATEST), run.with_name(tmp_name())
    try:
        os.symlink(run.name, tmp)
        os.replace(tmp, latest)
    except (OSError, NotImplementedError):
        remove(tmp)
        write_atomic(latest, run.name.encode() + b"\n")
