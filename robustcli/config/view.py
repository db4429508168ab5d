"""What the `config` verb shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from robustcli.config.bind import Registries
from robustcli.config.load import Loaded, load_config
from robustcli.config.overlay import Override
from robustcli.config.tree import leaves
from robustcli.errors import ConfigError


class Row(NamedTuple):
    """One setting: dotted key, its value as YAML reads it, and where it was written."""

    key: str
    value: str
    origin: str


def show_rows(loaded: Loaded) -> list[Row]:
    """Every leaf with its origin, for `config show --origin`."""
    data = loaded.config.model_dump(mode="json")
    return [Row(".".join(path), _word(value), loaded.origins[".".join(path)]) for path, value in leaves(data)]


def _word(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def validate_config(
    source: str | Path | None,
    overrides: Sequence[Override] = (),
    *,
    environ: Mapping[str, str] | None = None,
    registries: Registries | None = None,
) -> list[str]:
    """Every problem of a config, empty when it is valid, for `config validate`."""
    try:
        load_config(source, overrides, environ=environ, registries=registries)
    except ConfigError as error:
        return error.problems or [error.what]
    return []
