"""`robustcli guard log` and `robustcli guard forget`: what was done to a store, and what must leave it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from robustcli.errors import DataError, UsageError
from robustcli.guard.store import Entry, EvidenceStore
from robustcli.jobs.guard.cells import moment
from robustcli.records.document import Document
from robustcli.reporting.tables import Table
from robustcli.terminal.console import Console

_HASH = re.compile(r"[0-9a-f]{64}")
_SHOWN = 12  # characters of a hash in a table
_LISTED = 8  # values of a list in a table


def guard_log(
    where: str, console: Console, *, verify: bool, known: str | None, last: int | None
) -> dict[str, Any]:
    """Show the log, and check its chain.

    Args:
        verify: check the chain.
        known: the hash of an entry, or its beginning, that must still be there; it implies `verify`.
        last: show so many entries, the newest; None shows all.

    Raises DataError E-LOG naming the first entry that does not hold.
    """
    if known is not None and not re.fullmatch(r"[0-9a-f]{8,64}", known):
        raise UsageError(f"--known {known!r} is no hash", hint="8 to 64 digits of an entry's hash")
    document = Document("guard log")
    verify = verify or known is not None
    with EvidenceStore.open(where) as store:
        if verify:
            _check(store, known)
        entries = store.entries()
    shown = entries[max(0, len(entries) - last) :] if last is not None else entries
    console.table(
        Table(f"log of {store.where}", ["seq", "time", "what", "hash"], [_cells(each) for each in shown])
    )
    head = entries[-1].hash if entries else ""
    if verify:
        console.info(f"{len(entries)} entries hold; the last hash, to be noted elsewhere: {head}")
    content = {"entries": [vars(each) for each in shown], "in_all": len(entries), "head": head}
    return document.finish(None, content | {"verified": verify})


def guard_forget(where: str, hashes: Sequence[str], console: Console) -> dict[str, Any]:
    """Delete images for ever. hashes: whole ones, or beginnings that name one image.

    A whole hash that is not there is no failure: the command may be repeated after an interruption.
    """
    document = Document("guard forget")
    with EvidenceStore.open(where) as store:
        names = [text if _HASH.fullmatch(text) else store.named(text) for text in hashes]
        forgotten = store.forget(names)
    missing = len(set(names)) - forgotten
    console.result(f"{forgotten} forgotten" + (f", {missing} not in the store" if missing else ""))
    return document.finish(None, {"forgotten": forgotten, "missing": missing, "hashes": sorted(set(names))})


def _check(store: EvidenceStore, known: str | None) -> None:
    found = store.verify(known)
    if not found.ok:
        raise DataError(
            f"the log is broken at entry {found.bad}: {found.fault}",
            where=store.where,
            hint=f"the {found.entries} entries before it hold; compare with a copy of the store",
            code="E-LOG",
        )


def _cells(entry: Entry) -> list[str | int]:
    body = ", ".join(f"{key} {_short(value)}" for key, value in entry.body.items() if value not in (None, ""))
    return [entry.seq, moment(entry.time), f"{entry.kind}: {body}", entry.hash[:_SHOWN]]


def _short(value: object) -> str:
    """A value of a body; hashes are cut, and of a long list there is the length alone."""
    text = str(value)
    if isinstance(value, dict):
        text = " ".join(map(str, value.values()))
    elif isinstance(value, list) and len(value) <= _LISTED and all(isinstance(one, str) for one in value):
        text = " ".join(value)
    elif isinstance(value, list):
        text = f"({len(value)})"
    return _HASH.sub(lambda match: match[0][:_SHOWN], text)
