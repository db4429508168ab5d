"""Answers into rows: an observation of each, and the images of alarms, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, update

from robustcli.guard.store.database import count
from robustcli.guard.store.log import canonical
from robustcli.guard.store.retention import BYTES, present
from robustcli.guard.store.rows import Seen, finite
from robustcli.guard.store.tables import observations, quarantine


@dataclass
class _Came:
    """An image of one call: as it was first answered, how often it came, and when last."""

    first: Seen
    image: bytes
    time: float
    last: float
    seen: int = 1


def keep(connection: Connection, model: str, seen: Sequence[Seen], time: float) -> list[str | None]:
    """Store what a model answered; returns the hashes of the images. time: for answers without one.

    An image that is here already is counted.
    """
    connection.execute(observations.insert(), [_observation(model, each, time) for each in seen])
    names: list[str | None] = []
    came: dict[str, _Came] = {}
    for each in seen:
        names.append(_noted(each, time, came))
    known = set(present(connection, list(came)))
    again = [{"name": name, "more": one.seen, "at": one.last} for name, one in came.items() if name in known]
    fresh = {name: one for name, one in came.items() if name not in known}
    if again:
        more = {"seen": quarantine.c.seen + bindparam("more"), "last": bindparam("at")}
        connection.execute(
            update(quarantine).where(quarantine.c.hash == bindparam("name")).values(more), again
        )
    if fresh:
        connection.execute(quarantine.insert(), [_row(name, model, one) for name, one in fresh.items()])
        count(connection, BYTES, sum(len(one.image) for one in fresh.values()))
    return names


def _noted(seen: Seen, time: float, came: dict[str, _Came]) -> str | None:
    """The hash of an answer's image, which is counted in `came`; None without one."""
    if seen.image is None:
        return None
    name, when = hashlib.sha256(seen.image).hexdigest(), _when(seen, time)
    if name in came:
        came[name].seen, came[name].last = came[name].seen + 1, when
    else:
        came[name] = _Came(seen, seen.image, when, when)
    return name


def _row(name: str, model: str, came: _Came) -> dict[str, Any]:
    image = {"hash": name, "image": came.image, "size": len(came.image)}
    times = {"time": came.time, "last": came.last, "seen": came.seen}
    answer = {"model": model, "label": came.first.label, "confidence": came.first.confidence}
    return {**image, **times, **answer, "scores": canonical(finite(came.first.scores))}


def _observation(model: str, seen: Seen, time: float) -> dict[str, Any]:
    scores = canonical(finite(seen.scores))
    return {"time": _when(seen, time), "accepted": seen.accepted, "scores": scores, "model": model}


def _when(seen: Seen, time: float) -> float:
    return time if seen.time is None else seen.time
