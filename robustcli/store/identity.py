"""run.json: by this file a directory is known as a run of ours, and of which verb.

    {"format": "robustcli-run", "id": HEX, "schema_version": 1, "verb": VERB}

Runs of before this file are known by their status.json and their lock, which must be just as we wrote them.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.errors import CheckpointError
from robustcli.regular import read_regular, strict_loads
from robustcli.store.atomic import write_json
from robustcli.store.lock import NAME as LOCK_NAME
from robustcli.store.lock import is_holder
from robustcli.store.status import read_status

NAME = "run.json"
RUNS = Path("runs")  # VERB/NAME-N in it, where no --out is given
_FORMAT, _VERSION, _LIMIT = "robustcli-run", 1, 4096  # bytes
_VERB = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
#: A file or folder of a run that only runs of one verb write; asked in this order.
_TELLING = {
    "natural": "demo",
    "checkpoints": "train",
    "shards": "eval",
    "images": "attack",
    "transfer.jsonl": "transfer",
    "bench.json": "bench",
}


@dataclass(frozen=True)
class Identity:
    """Whose directory it is. verb: "" where a run of before run.json does not tell. id: "" for such a run."""

    verb: str
    id: str = ""

    @classmethod
    def new(cls, verb: str) -> Identity:
        """Of a run that begins now."""
        return cls(verb, secrets.token_hex(16))

    def write(self, run: Path) -> None:
        """Save as run.json. Raises ResourceError."""
        document = {"format": _FORMAT, "schema_version": _VERSION, "id": self.id, "verb": self.verb}
        write_json(run / NAME, document)


def identity_of(run: Path) -> Identity | None:
    """The identity of the run in a directory; None where it holds no run of ours."""
    try:
        document = strict_loads(read_regular(run / NAME, _LIMIT))
    except CheckpointError as error:
        if error.code != "E-CKPT-MISSING":
            return None
        return _of_before(run)
    except (ValueError, RecursionError):
        return None
    return _parsed(document)


def holds_runs(folder: Path) -> bool:
    """Whether a folder is a run of ours, or the ``runs/`` with those of each verb."""
    if (folder / NAME).exists() and identity_of(folder) is not None:
        return True
    return folder.name == RUNS.name and any(
        identity_of(marker.parent) is not None for marker in folder.glob(f"*/*/{NAME}")
    )


def _parsed(document: Any) -> Identity | None:
    """The identity that run.json states; None for any other document. A newer version may add keys."""
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        return None
    verb, id_ = document.get("verb"), document.get("id")
    if not (isinstance(verb, str) and _VERB.fullmatch(verb) and isinstance(id_, str) and _ID.fullmatch(id_)):
        return None
    if type(document.get("schema_version")) is not int:
        return None
    return Identity(verb, id_)


def _of_before(run: Path) -> Identity | None:
    """The identity of a run without run.json."""
    if not is_holder(run / LOCK_NAME) or not read_status(run):
        return None
    told = [verb for name, verb in _TELLING.items() if (run / name).exists()]
    return Identity(next(iter(told), _summarised(run)))


def _summarised(run: Path) -> str:
    """The verb that summary.json names; "" without one."""
    try:
        verb = json.loads(read_regular(run / "summary.json", 1 << 24)).get("verb")
    except (CheckpointError, ValueError, AttributeError, RecursionError):
        return ""
    return verb if isinstance(verb, str) and _VERB.fullmatch(verb) else ""
