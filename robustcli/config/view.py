"""What `robustcli config show --origin` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from robustcli.config.load import Loaded
from robustcli.config.tree import leaves
from robustcli.config.written import filled, written_out


class Row(NamedTuple):
    """One setting: dotted key, its value as YAML reads it, and where it was written."""

    key: str
    value: str
    origin: str


def show_rows(loaded: Loaded) -> list[Row]:
    """Every leaf of the config, with where it was written."""
    data = loaded.config.model_dump(mode="json")
    origins = {**{key: f"default of {name}" for key, name in filled(data).items()}, **loaded.origins}
    return [
        Row(".".join(path), _word(value), _origin(origins, path)) for path, value in leaves(written_out(data))
    ]


def _origin(origins: Mapping[str, str], path: Sequence[str]) -> str:
    """Where the leaf at `path` was written; an entry of a default list has the origin of the list."""
    for end in range(len(path), 0, -1):
        if ".".join(path[:end]) in origins:
            return origins[".".join(path[:end])]
    raise KeyError(".".join(path))


def _word(value: object) -> str:
    """A value as YAML reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
