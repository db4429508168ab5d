"""What a database refuses, as failures of ours; no password is in any of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, TimeoutError

from robustcli.errors import DataError, ResourceError, RobustCliError

_NO_STORE = ("not a database", "malformed", "no such table", "no such column", "does not exist")
_FULL = ("disk is full", "no space left", "disk full")
_BUSY = ("is locked", "is busy", "lock timeout")


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what the database or its driver raises inside into a RobustCliError. where: without a password."""
    try:
        yield
    except (DBAPIError, TimeoutError, sqlite3.Error) as error:
        raise _explanation(str(getattr(error, "orig", error)), where) from error


def _explanation(text: str, where: str) -> RobustCliError:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:200]
    low = text.lower()
    if any(words in low for words in _FULL):
        return ResourceError(
            f"the evidence store is full: {first}", where=where, hint="free some space", code="E-DISK"
        )
    if any(words in low for words in _BUSY):
        hint = "another process writes: wait for it, or end it"
        what = f"the evidence store is busy: {first}"
        return ResourceError(what, where=where, hint=hint, code="E-DATABASE")
    if any(words in low for words in _NO_STORE):
        return unfit(first, where)
    hint = "check that the database runs, that the address is right and that you may write there"
    return ResourceError(f"the evidence store fails: {first}", where=where, hint=hint, code="E-DATABASE")


def unfit(why: str, where: str, hint: str = "name a store of robustcli, or a new file") -> DataError:
    """E-STORE: what lies there is no evidence store that we can use."""
    return DataError(f"no evidence store that can be used: {why}", where=where, hint=hint, code="E-STORE")
