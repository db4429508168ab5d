"""``runs/<verb>/latest``: the newest run of a verb that has something to show."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustcli.store.atomic import tmp_name, write_atomic
from robustcli.store.current import CURRENT, target_of
from robustcli.store.disk import explained
from robustcli.store.retention import remove

LATEST = "latest"
RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def resolve_run(path: Path) -> Path:
    """`path` with every ``latest`` and ``current`` in it replaced by what it names now."""
    resolved = Path()
    for part in path.parts:
        resolved = resolved / part
        if part == LATEST:
            resolved = _named_by(resolved)
        elif part == CURRENT:
            resolved = target_of(resolved) or resolved
    return resolved


def _named_by(latest: Path) -> Path:
    """The run that a link or a one-line file names; `latest` itself when it is neither."""
    with explained(latest):
        if latest.is_symlink():
            return latest.parent / os.readlink(latest)
        if not latest.is_file():
            return latest
        name = latest.read_text("utf-8", "replace").strip()
    if not RUN_NAME.fullmatch(name.rpartition("-")[0]):
        return latest
    return latest.with_name(name)


def point_latest(run: Path) -> None:
    """Make ``latest`` beside `run` name it, atomically: as a link, or as a one-line file without links.

    Raises OSError, ResourceError.
    """
    latest, tmp = run.with_name(LATEST), run.with_name(tmp_name())
    try:
        os.symlink(run.name, tmp)
        os.replace(tmp, latest)
    except (OSError, NotImplementedError):
        remove(tmp)
        write_atomic(latest, run.name.encode() + b"\n")
