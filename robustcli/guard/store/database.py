"""A database of either kind: transactions that read or write, and tables of the right version."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite

from robustcli.errors import UsageError
from robustcli.guard.store import postgres
from robustcli.guard.store.failures import explained, unfit
from robustcli.guard.store.log import append
from robustcli.guard.store.postgres import Postgres
from robustcli.guard.store.sqlite import Sqlite
from robustcli.guard.store.tables import SCHEMA_VERSION, counters, meta, metadata

_VERSION = "schema_version"


class Kind(Protocol):
    """What differs between SQLite and PostgreSQL."""

    where: str
    engine: Engine

    def prepare(self) -> None: ...

    def lock(self, connection: Connection) -> None: ...

    def erase(self) -> None: ...


class Database:
    """An open evidence store as tables.

    Args:
        where: path of a file, or a URL `postgresql://...`.
        create: make the store where there is none.

    Raises DataError E-STORE where there is no store that we can use; ResourceError E-DATABASE, E-EXTRA;
    UsageError for another kind of database.
    """

    def __init__(self, where: str | os.PathLike[str], *, create: bool) -> None:
        self._kind = _kind(os.fspath(where), create=create)
        self.where = self._kind.where
        with explained(self.where):
            self._prepare(create)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the store, and makes no writer wait."""
        engine = self._kind.engine.execution_options(transaction="DEFERRED")
        with explained(self.where), engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is the only one that writes. It is on the disk when the block has ended."""
        with explained(self.where), self._kind.engine.begin() as connection:
            self._kind.lock(connection)
            yield connection

    def erase(self) -> None:
        """Leave no byte in the store's files of what was deleted."""
        with explained(self.where):
            self._kind.erase()

    def close(self) -> None:
        """Close all connections."""
        self._kind.engine.dispose()

    def _prepare(self, create: bool) -> None:
        """Make the tables of a new store; check the version of an old one."""
        names = set(inspect(self._kind.engine).get_table_names())
        if meta.name not in names:
            if not create or (names and isinstance(self._kind, Sqlite)):
                raise unfit("its tables are missing", self.where)
            self._kind.prepare()
            self._create()
        with self.reading() as connection:
            found = connection.scalar(select(meta.c.value).where(meta.c.key == _VERSION))
        if found is None or not found.isdigit():
            raise unfit("it does not say its version", self.where)
        if int(found) > SCHEMA_VERSION:
            hint = "update robustcli"
            raise unfit(f"a newer robustcli made it (version {found})", self.where, hint)

    def _create(self) -> None:
        with self.writing() as connection:
            if inspect(connection).has_table(meta.name):  # another process was faster
                return
            metadata.create_all(connection)
            connection.execute(meta.insert(), {"key": _VERSION, "value": str(SCHEMA_VERSION)})
            append(connection, "create", {_VERSION: SCHEMA_VERSION}, now())


def _kind(where: str, *, create: bool) -> Kind:
    if where.startswith(postgres.SCHEMES):
        return Postgres(where)
    scheme, colon, _ = where.partition("://")
    if colon:  # the rest may hold a password
        hint = "a path, or postgresql://USER@HOST/DATABASE"
        raise UsageError(f"a store cannot be at {scheme}://", where="store", hint=hint)
    return Sqlite(Path(where).expanduser(), create=create)


def address(where: str) -> str:
    """A store as messages name it: without the password. Raises UsageError for a URL that cannot be read."""
    if where.startswith(postgres.SCHEMES):
        return postgres.parsed(where).render_as_string(hide_password=True)
    return where


def now() -> float:
    """Seconds since 1970, to the millisecond: a number that JSON and both databases give back exactly."""
    return round(time.time(), 3)


def insert(connection: Connection, table: Table) -> Any:
    """An insert of the connection's dialect, which knows `on_conflict_do_update`."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def count(connection: Connection, name: str, change: int) -> int:
    """Change a counter of the store; returns its new value."""
    row = insert(connection, counters).values(name=name, value=change)
    summed = {"value": counters.c.value + row.excluded.value}
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=summed))
    return int(connection.scalar(select(counters.c.value).where(counters.c.name == name)) or 0)


def counts(connection: Connection) -> dict[str, int]:
    """All counters by name."""
    return {row.name: row.value for row in connection.execute(select(counters))}


def rows_of(connection: Connection, table: Table) -> int:
    """How many rows a table has."""
    return int(connection.scalar(select(func.count()).select_from(table)) or 0)
