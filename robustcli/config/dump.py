"""A config as YAML."""

from __future__ import annotations

from robustcli.config.load import write_tree
from robustcli.config.schema import Config


def dump_config(config: Config) -> str:
    """YAML of the whole config: loading it gives an equal one. Radii that are exactly k/255 are written so."""
    return write_tree(config.model_dump(mode="json"))
