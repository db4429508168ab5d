"""The store that the guard's verbs share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, func, select, update

from robustcli.errors import DataError, UsageError
from robustcli.guard.store import retention
from robustcli.guard.store.database import Database, count, counts, insert, now, rows_of
from robustcli.guard.store.failures import unfit
from robustcli.guard.store.keeping import keep
from robustcli.guard.store.log import Verification, append, canonical, entries, verify
from robustcli.guard.store.rows import Entry, Evidence, Limits, Observation, Review, Seen
from robustcli.guard.store.tables import observations, quarantine, references

T = TypeVar("T")
_FORGOTTEN = "forgotten"
_COUNTED = (_FORGOTTEN, *retention.DROPPED)
#: All but the pixels.
_COLUMNS = [column for column in quarantine.columns if column.name not in ("image", "size")]


class EvidenceStore:
    """Alarms with their images, observations, reviews and the log, for any number of processes at once.

    What a call has returned is on the disk: it outlives a kill and a power failure. Threads may share a
    store; a forked child opens its own.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database, self._limits = database, limits
        self.where = database.where

    @classmethod
    def open(
        cls, where: str | os.PathLike[str], *, create: bool = False, limits: Limits | None = None
    ) -> EvidenceStore:
        """The store in a file, or at a URL `postgresql://...`.

        Args:
            create: make it where there is none.
            limits: what it may hold; writers keep to theirs.

        Raises:
            DataError: E-STORE, there is no store that we can use. ResourceError: E-DATABASE, the database
                cannot be reached or refuses; E-EXTRA, its driver is not installed.
        """
        return cls(Database(where, create=create), limits or Limits())

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> EvidenceStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what a guarded model has seen

    def record(self, model: str, seen: Sequence[Seen]) -> list[str | None]:
        """Keep what a model answered, and the images of its alarms, in one transaction.

        An image that is here already is counted, not stored again.

        Args:
            model: SHA-256 of the model.

        Returns the hash of each image that was kept; None where `image` is None.
        """
        if not seen:
            return []
        time = now()
        with self._database.writing() as connection:
            kept = keep(connection, model, seen, time)
            retention.keep_within(connection, self._limits, time)
        return kept

    def observations(
        self, *, last: int | None = None, since: float | None = None, model: str | None = None
    ) -> list[Observation]:
        """What was answered, the oldest first.

        Args:
            last: at most so many, the newest ones.
            since: seconds since 1970.
            model: SHA-256 of one model.
        """
        found = select(observations).order_by(observations.c.id.desc()).limit(last)
        if since is not None:
            found = found.where(observations.c.time >= since)
        if model is not None:
            found = found.where(observations.c.model == model)
        with self._database.reading() as connection:
            rows = list(connection.execute(found))
        return [self._observed(row) for row in reversed(rows)]

    # evidence

    def evidence(
        self, *, reviewed: bool | None = None, limit: int | None = None, offset: int = 0
    ) -> list[Evidence]:
        """Quarantined images, the newest first. reviewed: only those with a review, or only those without."""
        found = select(*_COLUMNS).order_by(quarantine.c.last.desc(), quarantine.c.hash)
        if reviewed is not None:
            found = found.where(quarantine.c.review.is_not(None) == reviewed)
        with self._database.reading() as connection:
            rows = list(connection.execute(found.limit(limit).offset(offset)))
        return [self._evidence(row) for row in rows]

    def image(self, name: str) -> bytes:
        """PNG bytes of an image. Raises DataError E-EVIDENCE where it is missing, or was changed."""
        with self._database.reading() as connection:
            found = connection.scalar(select(quarantine.c.image).where(quarantine.c.hash == name))
        if found is None:
            raise DataError("there is no such image", where=f"{self.where}: {name}", code="E-EVIDENCE")
        if hashlib.sha256(found).hexdigest() != name:
            raise DataError("an image was changed", where=f"{self.where}: {name}", code="E-EVIDENCE")
        return bytes(found)

    def named(self, start: str) -> str:
        """The hash that begins like this. Raises UsageError where none does, or more than one."""
        begins = quarantine.c.hash.startswith(start, autoescape=True)
        with self._database.reading() as connection:
            found = list(connection.scalars(select(quarantine.c.hash).where(begins).limit(2)))
        if len(found) == 1 and start:
            return str(found[0])
        what = "several images" if found else "no image"
        raise UsageError(
            f"{what} of the store has a hash that begins with {start!r}",
            where=self.where,
            hint="`robustcli guard review STORE --list` shows the hashes",
        )

    def review(self, name: str, review: Review, by: str = "") -> None:
        """Set what a person found in an image; a later review replaces it, and the log has both.

        Raises UsageError for an unknown hash, and for a class that the model does not have.
        """
        self.review_all({name: review}, by)

    def review_all(self, reviews: Mapping[str, Review], by: str = "") -> None:
        """`review` of several images: all of them, or none where one is refused."""
        with self._database.writing() as connection:
            for name, review in reviews.items():
                self._review(connection, name, review, by)

    def _review(self, connection: Connection, name: str, review: Review, by: str) -> None:
        row, time, text = quarantine.c.hash == name, now(), str(review)
        before = connection.execute(select(quarantine.c.review, quarantine.c.model).where(row)).first()
        if before is None:
            raise UsageError(f"the store has no image {name!r}", where=self.where)
        classes = len(self._classes(connection, before.model))
        if classes and review.label is not None and review.label >= classes:
            hint = f"the model has the classes 0 to {classes - 1}"
            raise UsageError(f"there is no class {review.label}", where=name[:16], hint=hint)
        connection.execute(update(quarantine).where(row).values(review=text, reviewed=time))
        append(connection, "review", {"hash": name, "review": text, "before": before.review, "by": by}, time)

    def forget(self, names: Iterable[str]) -> int:
        """Delete images for ever, and return how many there were.

        No byte of them is left in the store's files. Hashes that the store does not have change nothing, so
        that a call that was interrupted can be repeated.
        """
        hashes = sorted(set(names))
        with self._database.writing() as connection:
            found = sorted(retention.present(connection, hashes))
            removed = retention.remove(connection, found)
            if removed:
                count(connection, _FORGOTTEN, removed)
                append(connection, "forget", {"hashes": found}, now())
        self._database.erase()
        return removed

    def counts(self) -> dict[str, int]:
        """Images, images with a review, observations, bytes of images; what was dropped and forgotten."""
        with self._database.reading() as connection:
            held = counts(connection)
            reviewed = select(func.count()).where(quarantine.c.review.is_not(None))
            return {
                "images": rows_of(connection, quarantine),
                "reviewed": int(connection.scalar(reviewed) or 0),
                "observations": rows_of(connection, observations),
                retention.BYTES: held.get(retention.BYTES, 0),
                **{name: held.get(name, 0) for name in _COUNTED},
            }

    # what a guard was fitted on

    def remember(self, model: str, reference: Mapping[str, Any]) -> None:
        """Keep what the scores of a model were when its guard was fitted. reference: JSON."""
        row = {"model": model, "time": now(), "body": canonical(reference)}
        with self._database.writing() as connection:
            put = insert(connection, references).values(row)
            connection.execute(put.on_conflict_do_update(index_elements=["model"], set_=row))

    def reference(self, model: str) -> dict[str, Any] | None:
        """What `remember` was given for a model; None where it was not called."""
        with self._database.reading() as connection:
            return self._reference(connection, model)

    def classes(self, model: str) -> tuple[str, ...]:
        """Names of a model's classes in the order of the labels; () where the store does not know them."""
        with self._database.reading() as connection:
            return self._classes(connection, model)

    # the log

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add an entry to the log. body: JSON."""
        with self._database.writing() as connection:
            return append(connection, kind, body, now())

    def entries(self, after: int = 0) -> list[Entry]:
        """The entries after number `after`, in their order."""
        with self._database.reading() as connection:
            return list(entries(connection, after))

    def verify(self, known: str | None = None) -> Verification:
        """Check the whole log. known: the hash of an entry that it is to hold still."""
        with self._database.reading() as connection:
            return verify(connection, known)

    # reading

    def _reference(self, connection: Connection, model: str) -> dict[str, Any] | None:
        body = connection.scalar(select(references.c.body).where(references.c.model == model))
        return None if body is None else dict(self._parsed(json.loads, body))

    def _classes(self, connection: Connection, model: str) -> tuple[str, ...]:
        return tuple((self._reference(connection, model) or {}).get("classes", ()))

    def _observed(self, row: Row[Any]) -> Observation:
        return Observation(row.time, row.accepted, self._parsed(json.loads, row.scores), row.model)

    def _evidence(self, row: Row[Any]) -> Evidence:
        review = None if row.review is None else self._parsed(Review.parse, row.review)
        scores = self._parsed(json.loads, row.scores)
        return Evidence(**{**row._asdict(), "scores": scores, "review": review})

    def _parsed(self, parse: Callable[[str], T], text: str) -> T:
        """What stands in a column. Raises DataError E-STORE for text that is not ours."""
        try:
            return parse(text)
        except (ValueError, UsageError) as error:
            raise unfit(f"a row was changed: {text[:40]!r}", self.where, "restore a copy of it") from error
