"""YAML in, checked Config out: files, `extends`, environment, overrides, and every mistake in one pass."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from robustcli.config.bind import Registries
from robustcli.config.config_files import SUFFIXES, display, problem, read_text
from robustcli.config.overlay import Override, default_layer, environment_layer, override_layer
from robustcli.config.schema import Config, rules
from robustcli.config.shipped import find_config
from robustcli.config.thresholds import threshold_faults
from robustcli.config.tree import Fault, Node, config_error, leaf_origin, leaves, merge, pruned, to_python
from robustcli.config.validate import bind_faults, code_faults, schema_faults
from robustcli.config.wording import shown
from robustcli.config.yaml_text import read_tree
from robustcli.errors import ConfigError

MAX_EXTENDS = 8


@dataclass(frozen=True)
class Loaded:
    """A checked config.

    Args:
        config: the settings.
        origins: dotted key of every leaf -> where its value was written.
        path: the file, or None when there was none.
    """

    config: Config
    origins: dict[str, str]
    path: Path | None


def load_config(
    source: str | Path | None,
    overrides: Sequence[Override] = (),
    *,
    environ: Mapping[str, str] | None = None,
    bind: bool = True,
    registries: Registries | None = None,
    without: Sequence[str] = (),
    makes_model: bool = True,
) -> Loaded:
    """defaults < config file (with its `extends` chain) < environment < overrides, validated as a whole.

    Args:
        source: a path, the name of a shipped config, or None for defaults alone.
        overrides: in the order given; the later wins.
        environ: None means os.environ; only ROBUSTCLI_ names are read.
        bind: also check every spec against its registry (imports torch).
        registries: None means the package's own, discovered here.
        without: dotted keys that are not taken from the file.
        makes_model: whether the model will be made. Then no file may name code or a program.

    Raises:
        ConfigError: `problems` lists every mistake as `file:line: a.b.c: what; did you mean 'x'?`.
    """
    faults: list[Fault] = []
    path: Path | None = None
    files: list[Node] | None = []
    if source is not None:
        path = find_config(source)
        files = _read_chain(path, faults)
    environment = environment_layer(os.environ if environ is None else environ, faults)
    command_line = override_layer(overrides, faults)
    if files is None:
        raise config_error(faults)
    tree = default_layer()
    for layer in (*(pruned(file, without) for file in files), environment, command_line):
        tree = merge(tree, layer, rules(), faults)
    data, found = to_python(tree), None
    if bind:
        found = registries or Registries.discover()
    faults += threshold_faults(data)
    if makes_model:
        faults += code_faults(tree)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        faults += schema_faults(error, data, found)
    if found is not None:
        faults += bind_faults(data, found)
    if faults:
        raise config_error(faults, tree)
    return Loaded(config, _origins(config, tree), path)


def _origins(config: Config, tree: Node) -> dict[str, str]:
    return {".".join(path): leaf_origin(tree, path) for path, _ in leaves(config.model_dump(mode="json"))}


def _read_chain(path: Path, faults: list[Fault]) -> list[Node] | None:
    """The trees of `path` and of the files it extends, the most basic first.

    None when one of them cannot be read to its end: such a file says nothing about the rest.
    """
    chain: list[Node] = []
    seen: list[str] = []
    text = read_text(path)
    while True:
        seen.append(os.path.realpath(path))
        tree = read_tree(text, display(path), faults)
        if tree is None:
            return None
        chain.insert(0, tree)
        parent = _take_extends(tree)
        if parent is None:
            return chain
        try:
            path = _parent(path, parent, seen)
            text = read_text(path)
        except ConfigError as error:
            faults.append(Fault("extends", error.what, parent.origin))
            return None


def _take_extends(tree: Node) -> Node | None:
    """The value of `extends`, taken out of the tree of a file; None without one."""
    assert isinstance(tree.value, dict)
    parent = tree.value.pop("extends", None)
    if parent is None or parent.value is None:
        return None
    return parent


def _parent(path: Path, parent: Node, seen: list[str]) -> Path:
    """The file that `extends` names. Raises ConfigError."""
    name = parent.value
    if not isinstance(name, str) or not _is_relative_yaml(name):
        raise problem(f"expected a .yaml file relative to this one, got {shown(to_python(parent))}")
    base = path.parent / name
    if os.path.realpath(base) in seen:
        raise problem(f"{shown(name)} extends this file in a circle")
    if len(seen) >= MAX_EXTENDS:
        raise problem(f"more than {MAX_EXTENDS} files in one extends chain")
    return base


def _is_relative_yaml(name: str) -> bool:
    return name.endswith(SUFFIXES) and name.isprintable() and not Path(name).is_absolute()
