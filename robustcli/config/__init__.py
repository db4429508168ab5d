"""Configs: `load_config` reads and checks one, `dump_config` writes one, `bind_spec` turns a spec into a call."""

from __future__ import annotations

from robustcli.config.bind import Bound, Registries, bind_spec
from robustcli.config.dump import dump_config
from robustcli.config.load import Loaded, Override, load_config, parse_assignment
from robustcli.config.number import format_number, parse_number
from robustcli.config.overlay import RESERVED_ENVIRONMENT
from robustcli.config.schema import Config, ModelConfig, Spec, json_schema
from robustcli.config.shipped import (
    ShippedConfig,
    cat_config,
    copy_config,
    find_config,
    list_shipped,
    shipped_configs,
)
from robustcli.config.view import Row, show_rows, validate_config

__all__ = [
    "RESERVED_ENVIRONMENT", "Bound", "Config", "Loaded", "ModelConfig", "Override", "Registries", "Row", "ShippedConfig", "Spec", "bind_spec", "cat_config",
    "copy_config", "dump_config", "find_config", "format_number", "json_schema", "list_shipped", "load_config", "parse_assignment", "parse_number",
    "shipped_configs", "show_rows", "validate_config",
]  # fmt: skip
