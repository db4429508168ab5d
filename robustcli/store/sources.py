"""What a run reads must not be where it writes: a run that replaces its own source would destroy it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from robustcli.errors import UsageError


class Source(NamedTuple):
    """A file or folder that a command reads. name: what it is, as the user said it."""

    name: str
    path: Path


def check_apart(out: Path, sources: Sequence[Source]) -> None:
    """Raises UsageError where `out` is one of the sources, or holds one; links are followed.

    An `out` with something in it must not lie in a source either. A new folder there takes nothing away.
    """
    target, taken = list(_upwards(out)), out.is_dir() and any(out.iterdir())
    for source in sources:
        relation = _relation(target, list(_upwards(source.path)), source.path)
        if relation and (taken or relation != "lies in"):
            raise UsageError(
                f"--out {relation} {source.name}, which this command reads",
                where=str(out),
                hint="choose another --out",
            )


def _relation(target: Sequence[tuple[int, int]], place: Sequence[tuple[int, int]], source: Path) -> str:
    """How the output lies to a source; "" for apart. Each sequence leads from a place up to the root."""
    if not os.path.exists(source):
        return ""
    if target[0] == place[0]:
        return "is"
    if target[0] in place:
        return "holds"
    return "lies in" if place[0] in target else ""


def _upwards(path: Path) -> Iterator[tuple[int, int]]:
    """(device, number) of a path and of each folder above it, links followed; what is missing is (0, 0)."""
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        try:
            status = os.stat(place)
        except (OSError, ValueError):
            yield (0, 0)
        else:
            yield (status.st_dev, status.st_ino)
