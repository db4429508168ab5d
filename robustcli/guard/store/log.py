"""The log of a store: entries that are only ever added, each holding the hash of the one before.

hash = SHA-256 of canonical JSON of [seq, time, kind, body, prev]. A changed, missing or moved entry breaks
the chain. Entries that were cut off at its end are seen by who noted a later hash elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from robustcli.guard.store.rows import Entry
from robustcli.guard.store.tables import log

FIRST = "0" * 64  # prev of the first entry


@dataclass(frozen=True)
class Verification:
    """What was found: entries that hold, hash of the last of them, and what is wrong with the next one.

    bad: number of the first entry that does not hold; None where all do.
    """

    entries: int
    head: str
    bad: int | None = None
    fault: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole chain holds."""
        return self.bad is None


def canonical(value: Any) -> str:
    """JSON with sorted keys, without spaces, in ASCII. Raises ValueError for NaN and Inf."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(seq: int, time: float, kind: str, body: Mapping[str, Any], prev: str) -> str:
    """The hash of an entry."""
    return hashlib.sha256(canonical([seq, time, kind, body, prev]).encode()).hexdigest()


def append(connection: Connection, kind: str, body: Mapping[str, Any], time: float) -> Entry:
    """Add an entry, in a transaction that is the only one that writes."""
    last = connection.execute(select(log.c.seq, log.c.hash).order_by(log.c.seq.desc()).limit(1)).first()
    seq, prev = (last.seq + 1, last.hash) if last else (1, FIRST)
    text = canonical(body)
    held = json.loads(text)  # as a reader will see it: tuples are lists, keys are text
    entry = Entry(seq, time, kind, held, prev, digest(seq, time, kind, held, prev))
    connection.execute(log.insert(), {**vars(entry), "body": text})
    return entry


def entries(connection: Connection, after: int = 0) -> Iterator[Entry]:
    """The entries after number `after`, in their order."""
    for row in _rows(connection, after):
        yield Entry(row.seq, row.time, row.kind, json.loads(row.body), row.prev, row.hash)


def verify(connection: Connection, known: str | None = None) -> Verification:
    """Walk the whole chain.

    known: the hash of an entry, or its beginning, that the log is to hold still.
    """
    seq, head, met = 0, FIRST, known is None
    for row in _rows(connection):
        fault = _fault(row, seq + 1, head)
        if fault:
            return Verification(seq, head, seq + 1, fault)
        seq, head = row.seq, row.hash
        met = met or head.startswith(str(known))
    if not seq:
        return Verification(0, FIRST, 1, "the log is empty")
    if not met:
        return Verification(seq, head, seq + 1, f"the entry {known} is missing: the end was cut off")
    return Verification(seq, head)


def _rows(connection: Connection, after: int = 0) -> Iterator[Row[Any]]:
    found = select(log).where(log.c.seq > after).order_by(log.c.seq)
    yield from connection.execution_options(yield_per=1000).execute(found)


def _fault(row: Row[Any], seq: int, prev: str) -> str:
    """What is wrong with an entry at the place `seq`; "" for nothing."""
    if row.seq != seq:
        return f"it is missing: number {row.seq} follows"
    if row.prev != prev:
        return "it does not follow the entry before"
    try:
        body = json.loads(row.body)
        if canonical(body) == row.body and digest(row.seq, row.time, row.kind, body, row.prev) == row.hash:
            return ""
    except ValueError:
        return "its body is no JSON"
    return "its content was changed"
