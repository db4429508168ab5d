"""The tables of an evidence store. A change of theirs raises SCHEMA_VERSION."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 1
_HASH = String(64)
_COUNTED = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts rows by INTEGER alone
metadata = MetaData()

meta = Table(
    "guard_meta",
    metadata,
    Column("key", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)
#: What the store holds and has dropped; changed in the transaction of what is counted.
counters = Table(
    "guard_counters",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
quarantine = Table(
    "guard_quarantine",
    metadata,
    Column("hash", _HASH, primary_key=True),
    Column("image", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("time", Double, nullable=False),
    Column("last", Double, nullable=False),
    Column("seen", BigInteger, nullable=False),
    Column("model", _HASH, nullable=False),
    Column("label", Integer, nullable=False),
    Column("confidence", Double, nullable=False),
    Column("scores", Text, nullable=False),
    Column("review", String(40)),
    Column("reviewed", Double),
    Index("guard_quarantine_last", "last"),
)
observations = Table(
    "guard_observations",
    metadata,
    Column("id", _COUNTED, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("scores", Text, nullable=False),
    Column("model", _HASH, nullable=False),
    Index("guard_observations_time", "time"),
)
#: What the scores of a guard were when it was fitted, to compare those of today with.
references = Table(
    "guard_references",
    metadata,
    Column("model", _HASH, primary_key=True),
    Column("time", Double, nullable=False),
    Column("body", Text, nullable=False),
)
log = Table(
    "guard_log",
    metadata,
    Column("seq", _COUNTED, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Column("prev", _HASH, nullable=False),
    Column("hash", _HASH, nullable=False),
)
