"""Which guard is deployed: the link ``current``, and the entries of the log that say how it came to be there.

An entry before the switch says what is meant, one after it what was done. A kill between them leaves the old
or the new guard whole, and `Deployment.settle` then writes what the link says.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from robustcli.errors import CheckpointError, RobustCliError, UsageError
from robustcli.guard.store import Entry, EvidenceStore
from robustcli.models.guard_file import read_guard
from robustcli.store.current import CURRENT, point, relative, target_of
from robustcli.store.latest import resolve_run

Kind = Literal["promote", "rollback"]
_DONE = {"promote": "promoted", "rollback": "rolled back"}
_UNDONE = "nothing changed"


@dataclass(frozen=True)
class Version:
    """One guard: its directory as seen from the folder of the link, and the SHA-256 of its manifest."""

    path: str
    sha256: str


class Deployment:
    """The guard behind a link, and the log of its changes.

    Args:
        store: holds the log.
        guard: a directory of `guard fit`, or the link `current`. The first promotion makes `current` beside
            the directory.

    Attributes:
        link: the path `current`, which may not exist yet.
        version: the guard that is deployed.

    Raises:
        UsageError: `guard` is a directory, and the link beside it names another one; or it is a link that no
            promotion has made.
        CheckpointError: there is no guard, or it is damaged.
    """

    def __init__(self, store: EvidenceStore, guard: Path) -> None:
        self._store = store
        named = resolve_run(guard)
        self.link = guard if guard.name == CURRENT else named.parent / CURRENT
        is_first = target_of(self.link) is None and guard != self.link
        self.version = self._version(named if is_first else self.link)
        if self.version.path != relative(named, self.link):
            raise UsageError(
                f"{named} is not the guard that is deployed: {self.link} names {self.version.path}",
                where="GUARD",
                hint=f"name {self.link}",
            )
        self.settle()

    @property
    def directory(self) -> Path:
        """Of the deployed guard."""
        return self.link.parent / self.version.path

    def settle(self) -> None:
        """Finish the log where a kill has interrupted a switch: it gets what the link says."""
        waiting: Entry | None = None
        for entry in self._store.entries():
            if entry.body.get("link") != self._name:
                continue
            waiting = entry if entry.kind in _DONE else None
        if waiting is None:
            return
        arrived = waiting.body["to"]["sha256"] == self.version.sha256
        self._note(_DONE[waiting.kind] if arrived else _UNDONE, waiting.body)

    def promote(self, guard: Path) -> Version:
        """Deploy the guard in another directory; the old one stays where it is. Returns the new version."""
        return self._switch("promote", self._version(guard))

    def roll_back(self) -> Version:
        """Deploy the version before the deployed one again.

        Raises UsageError where the log knows of none, and CheckpointError where it is gone or was changed.
        """
        before = self._before()
        found = self._version(self.link.parent / before.path)
        if found.sha256 != before.sha256:
            raise CheckpointError(
                "the version before is not the one that was deployed",
                where=str(self.link.parent / before.path),
                hint="nothing was changed; the log has its hash",
                code="E-CKPT-HASH",
            )
        return self._switch("rollback", before)

    def _before(self) -> Version:
        for entry in self._store.entries():
            if entry.kind == _DONE["promote"] and entry.body["to"]["sha256"] == self.version.sha256:
                return Version(**entry.body["from"])
        raise UsageError(
            "there is no version before this one",
            where=str(self.link),
            hint="`robustcli guard log STORE` shows what was promoted",
        )

    def _switch(self, kind: Kind, to: Version) -> Version:
        if target_of(self.link) is not None and self._version(self.link) != self.version:
            raise UsageError(
                "another command has changed the deployed guard meanwhile",
                where=str(self.link),
                hint="run this one again",
            )
        body = {"link": self._name, "from": asdict(self.version), "to": asdict(to)}
        self._note(kind, body)
        try:
            point(self.link, to.path)
        except RobustCliError:
            self._note(_UNDONE, body)
            raise
        self._note(_DONE[kind], body)
        self.version = to
        return to

    @property
    def _name(self) -> str:
        return os.path.abspath(self.link)

    def _note(self, kind: str, body: dict[str, Any]) -> None:
        self._store.append(kind, body)

    def _version(self, directory: Path) -> Version:
        """What is in a directory, or behind the link."""
        place = target_of(directory) if directory == self.link else directory
        if place is None:
            raise unpromoted(self.link)
        return Version(relative(place, self.link), read_guard(place)[1])


def unpromoted(link: Path) -> UsageError:
    """The error for a link `current` that is not there."""
    hint = "name the directory of `guard fit`; the first promotion makes the link"
    return UsageError("nothing was promoted yet", where=str(link), hint=hint)
