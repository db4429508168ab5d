"""A config as YAML."""

from __future__ import annotations

from robustcli.config.schema import Config
from robustcli.config.yaml_text import write_tree


def dump_config(config: Config) -> str:
    """YAML of the whole config. Loading it gives an equal one; a radius of exactly 8/255 is written so."""
    return write_tree(config.model_dump(mode="json"))
