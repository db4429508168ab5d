"""What `robustcli config show --origin` shows."""

from __future__ import annotations

from typing import NamedTuple

from robustcli.config.load import Loaded
from robustcli.config.tree import leaves


class Row(NamedTuple):
    """One setting: dotted key, its value as YAML reads it, and where it was written."""

    key: str
    value: str
    origin: str


def show_rows(loaded: Loaded) -> list[Row]:
    """Every leaf of the config, with where it was written."""
    data = loaded.config.model_dump(mode="json")
    return [Row(".".join(path), _word(value), loaded.origins[".".join(path)]) for path, value in leaves(data)]


def _word(value: object) -> str:
    """A value as YAML reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
