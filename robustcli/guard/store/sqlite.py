"""SQLite as the database of a store: one file of mode 0600, a write-ahead log, every commit on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from robustcli.errors import ResourceError
from robustcli.guard.store.failures import unfit
from robustcli.regular import open_regular

_PATIENCE = 30.0  # seconds that a writer waits for the others
_PAUSE = 0.02
_FILE, _FOLDER = 0o600, 0o700
#: A commit has reached the disk. What is deleted is zeroed, and no image goes to a temporary file.
_PRAGMAS = ("synchronous=FULL", "secure_delete=ON", "temp_store=MEMORY", "foreign_keys=ON")


class Sqlite:
    """A store in the file `path`, which is made where `create` says so. Raises DataError E-STORE, OSError."""

    def __init__(self, path: Path, *, create: bool) -> None:
        self.where = str(path)
        if create and not path.exists():
            _make(path)
        if not path.exists():
            raise unfit("there is no such file", self.where, "name what `guard run` or `guard serve` wrote")
        os.close(open_regular(path))
        url = URL.create("sqlite+pysqlite", database=self.where)
        self.engine = create_engine(url, connect_args={"timeout": _PATIENCE})
        event.listen(self.engine, "connect", _set_up)
        event.listen(self.engine, "begin", _begin)

    def prepare(self) -> None:
        """Switch to the write-ahead log. Where several processes do so at once, some must try again."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._alone("PRAGMA journal_mode=WAL")
                return
            except OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(_PAUSE)

    def lock(self, connection: Connection) -> None:
        """Nothing: `BEGIN IMMEDIATE` has made this the only writer."""

    def erase(self) -> None:
        """Write the file anew without what was deleted, and empty the write-ahead log.

        Raises ResourceError E-DATABASE when another process still reads what was deleted.
        """
        self._alone("VACUUM")
        busy, _, _ = self._alone("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise ResourceError(
                "the image is deleted, but its bytes are still in the write-ahead log",
                where=self.where,
                hint="another process reads the store: run the same command again when it has ended",
                code="E-DATABASE",
            )

    def _alone(self, statement: str) -> Sequence[Any]:
        """The first row of a statement that SQLite allows only outside a transaction; () without rows."""
        with self.engine.connect().execution_options(transaction=None) as connection:
            done = connection.exec_driver_sql(statement)
            return (done.first() if done.returns_rows else None) or ()


def _make(path: Path) -> None:
    """Make the file (0600), and its folder (0700) where that is missing. One that is there stays as it is."""
    path.parent.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
    with suppress(FileExistsError):  # another process was faster
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE))


def _set_up(raw: Any, record: Any) -> None:
    """Let SQLAlchemy's `begin` open transactions, not the driver."""
    raw.isolation_level = None
    for pragma in _PRAGMAS:
        raw.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """A writer takes its lock at once: one that takes it later can be refused without waiting."""
    kind = connection.get_execution_options().get("transaction", "IMMEDIATE")
    if kind is not None:
        connection.exec_driver_sql(f"BEGIN {kind}")
