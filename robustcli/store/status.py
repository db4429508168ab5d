"""status.json of a run: how it stands, for launchers and for a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustcli.errors import CheckpointError
from robustcli.regular import read_regular, strict_loads

NAME = "status.json"
STATES = ("running", "done", "preempted", "failed")
_LIMIT = 1 << 16  # bytes
_VERSION = 1


def first_status(before: dict[str, Any]) -> dict[str, Any]:
    """The status of a run that begins or goes on. before: that of its earlier part, {} for none."""
    return {
        "schema_version": _VERSION,
        "state": "running",
        "code": None,
        "step": before.get("step"),
        "last_checkpoint": before.get("last_checkpoint"),
        "resumable": before.get("resumable", False),
    }


def read_status(run: Path) -> dict[str, Any]:
    """The fields of status.json; {} where there is none, or another document stands there."""
    try:
        status = strict_loads(read_regular(run / NAME, _LIMIT))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    if not isinstance(status, dict) or not _is_status(status):
        return {}
    return {name: status[name] for name in first_status({})}


def _is_status(status: dict[str, Any]) -> bool:
    """Whether each field is there and has its type. Fields that a newer version adds are free."""
    if not first_status({}).keys() <= status.keys():
        return False
    step, last = status["step"], status["last_checkpoint"]
    return (
        type(status["schema_version"]) is int
        and status["state"] in STATES
        and (status["code"] is None or type(status["code"]) is int)
        and (step is None or (type(step) is int and 0 <= step < 10**18))
        and (last is None or isinstance(last, str))
        and isinstance(status["resumable"], bool)
    )
