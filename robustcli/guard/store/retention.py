"""What leaves a store by itself: images that are too many or too old, and old observations.

Whatever goes is counted, and noted in the log. It goes a tenth at a time, so that a flood of alarms does not
become a flood of entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select

from robustcli.guard.store.database import count, counts
from robustcli.guard.store.log import append
from robustcli.guard.store.rows import Limits
from robustcli.guard.store.tables import observations, quarantine

BYTES = "image_bytes"  # counter of what all images take
FULL, OLD, LOOKED = "dropped_for_room", "dropped_for_age", "dropped_observations"
DROPPED = (FULL, OLD, LOOKED)
_KEPT = 0.9  # of a limit, after something had to go
_DAY = 86400.0
_AT_ONCE = 500  # hashes in one statement


def keep_within(connection: Connection, limits: Limits, time: float) -> None:
    """Drop images that are too old, then the oldest until the rest has room; then old observations."""
    _drop_old(connection, time - limits.days * _DAY, time)
    if counts(connection).get(BYTES, 0) > limits.bytes:
        _make_room(connection, limits, time)
    _forget_observations(connection, limits.observations, time)


def remove(connection: Connection, hashes: Sequence[str]) -> int:
    """Delete images; returns how many there were."""
    removed = 0
    for names in portions(hashes):
        these = quarantine.c.hash.in_(names)
        size = connection.scalar(select(func.sum(quarantine.c.size)).where(these)) or 0
        count(connection, BYTES, -int(size))
        removed += connection.execute(delete(quarantine).where(these)).rowcount
    return removed


def present(connection: Connection, hashes: Sequence[str]) -> list[str]:
    """Those of the hashes that the store has."""
    found: list[str] = []
    for names in portions(hashes):
        found += connection.scalars(select(quarantine.c.hash).where(quarantine.c.hash.in_(names)))
    return found


def portions(hashes: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many hashes as one statement takes."""
    for start in range(0, len(hashes), _AT_ONCE):
        yield hashes[start : start + _AT_ONCE]


def _drop_old(connection: Connection, before: float, time: float) -> None:
    old = select(quarantine.c.hash).where(quarantine.c.last < before)
    _drop(connection, list(connection.scalars(old)), OLD, time)


def _make_room(connection: Connection, limits: Limits, time: float) -> None:
    """Drop the oldest images, those without a review first."""
    held, hashes = counts(connection)[BYTES], []
    order = (quarantine.c.review.is_not(None), quarantine.c.last, quarantine.c.hash)
    for row in connection.execute(select(quarantine.c.hash, quarantine.c.size).order_by(*order)):
        if held <= _KEPT * limits.bytes:
            break
        hashes.append(row.hash)
        held -= row.size
    _drop(connection, hashes, FULL, time)


def _drop(connection: Connection, hashes: Sequence[str], why: str, time: float) -> None:
    if not hashes:
        return
    removed = remove(connection, hashes)
    _note(connection, why, removed, time)


def _forget_observations(connection: Connection, limit: int, time: float) -> None:
    """Numbers of rows are given in order, so that their difference bounds the number of rows."""
    first, last = connection.execute(select(func.min(observations.c.id), func.max(observations.c.id))).one()
    if last is None or last - first < limit / _KEPT:
        return
    removed = connection.execute(delete(observations).where(observations.c.id <= last - limit)).rowcount
    _note(connection, LOOKED, removed, time)


def _note(connection: Connection, why: str, removed: int, time: float) -> None:
    body: dict[str, Any] = {"why": why, "number": removed, "in_all": count(connection, why, removed)}
    append(connection, "drop", body, time)
