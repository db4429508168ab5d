"""PostgreSQL as the database of a store, for guards on several hosts. psycopg speaks to it."""

from __future__ import annotations

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from robustcli.errors import ResourceError, UsageError
from robustcli.guard.store.tables import quarantine

SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")
_DRIVER = "postgresql+psycopg"
_LOCK = 0x67756172  # "guar": the advisory lock of all writers to one database
#: Seconds to wait for an answer; and our encoding, where the database says SQL_ASCII.
_CONNECT = {"connect_timeout": 10, "client_encoding": "utf8"}


class Postgres:
    """A store in the database at `url`. Raises ResourceError E-EXTRA without psycopg, UsageError."""

    def __init__(self, url: str) -> None:
        address = parsed(url)
        self.where = address.render_as_string(hide_password=True)
        try:
            # A connection that the server or a firewall has closed meanwhile is opened again.
            self.engine = create_engine(address, pool_pre_ping=True, connect_args=_CONNECT)
        except ImportError as error:
            raise ResourceError(
                f"a store in PostgreSQL needs psycopg: {error}",
                where=self.where,
                hint="pip install 'robustcli[postgres]'",
                code="E-EXTRA",
            ) from error

    def prepare(self) -> None:
        """Nothing: the server has its log, and each commit waits for the disk."""

    def lock(self, connection: Connection) -> None:
        """Wait until this transaction is the only one that writes to the store, as in SQLite."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})

    def erase(self) -> None:
        """Write the table anew without what was deleted. The server's own log and backups are its owner's."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"VACUUM FULL {quarantine.name}"))


def parsed(url: str) -> URL:
    """The URL with our driver. Raises UsageError without repeating it: it may hold a password."""
    from sqlalchemy import make_url

    try:
        return make_url(url).set(drivername=_DRIVER)
    except (ArgumentError, ValueError) as error:
        hint = "postgresql://USER@HOST:PORT/DATABASE; the password may come from PGPASSWORD or ~/.pgpass"
        raise UsageError("the address of the database cannot be read", where="store", hint=hint) from error
