"""What the trackers of a service have in common: settings to show, and a note with which a resume goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from robustcli.errors import ResourceError
from robustcli.store.atomic import write_json

CONFIG = "config.resolved.yaml"


def read_note(path: Path) -> dict[str, str]:
    """The texts that `write_note` left there; {} where nobody did, or where they cannot be read."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(note, dict):
        return {}
    return {key: value for key, value in note.items() if isinstance(value, str)}


def write_note(path: Path, **note: str) -> None:
    """Keep texts in the run directory. Raises ResourceError where nothing can be written."""
    write_json(path, note)


def settings_of(run_dir: Path) -> Mapping[str, Any]:
    """The configuration of the run as a tree; {} where it has none that can be read."""
    try:
        tree = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def flat(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of each leaf; an item of a list has its number in the key."""
    if isinstance(tree, dict):
        parts = [(str(name), value) for name, value in tree.items()]
    elif isinstance(tree, list):
        parts = [(str(k), value) for k, value in enumerate(tree)]
    else:
        yield key, str(tree)
        return
    for name, value in parts:
        yield from flat(value, f"{key}.{name}" if key else name)


def lacking(tracker: str, error: ImportError) -> ResourceError:
    """E-EXTRA for a tracker whose package cannot be imported."""
    return ResourceError(
        f"the tracker {tracker} needs a package that is not installed: {error.name or error}",
        where="train.trackers",
        hint=f'pip install "robustcli[{tracker}]"',
        code="E-EXTRA",
    )
