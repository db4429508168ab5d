"""The JSON document that a verb answers with: on stdout with --json, and in the run as summary.json."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustcli.records.common import SCHEMA_VERSION

#: Keys that every document has, whatever the verb.
ENVELOPE = ("schema_version", "ok", "verb", "run", "seconds")


@dataclass(frozen=True)
class Document:
    """The document of one verb. Make it when the work begins: its seconds count from there."""

    verb: str
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the work began, to the millisecond."""
        return round(time.perf_counter() - self.began, 3)

    def finish(self, run: Path | None, content: Mapping[str, Any]) -> dict[str, Any]:
        """The envelope, then `content`: the keys of the verb. run: its directory, or None without one."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": True,
            "verb": self.verb,
            "run": None if run is None else str(run),
            "seconds": self.seconds,
            **content,
        }
