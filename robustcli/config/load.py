"""YAML in, checked Config out: files, `extends`, environment, overrides, and every mistake in one pass.

The only module that imports yaml.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from robustcli.config.bind import Registries
from robustcli.config.number import resolve_plain, shown
from robustcli.config.overlay import (
    Override,
    default_layer,
    environment_layer,
    override_layer,
)
from robustcli.config.parse import Builder, Event, Stop
from robustcli.config.position import SUFFIXES, display, read_text
from robustcli.config.schema import Config, rules
from robustcli.config.shipped import find_config
from robustcli.config.tree import Fault, Node, config_error, leaf_origin, leaves, merge, pruned, to_python
from robustcli.config.validate import bind_faults, code_faults, schema_faults
from robustcli.errors import ConfigError

MAX_EXTENDS = 8
_LOADER: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # same events; libyaml is fast enough for 1 MiB of anything
_KINDS = {
    yaml.ScalarEvent: "scalar", yaml.AliasEvent: "alias", yaml.MappingStartEvent: "map", yaml.SequenceStartEvent: "seq",
    yaml.MappingEndEvent: "end", yaml.SequenceEndEvent: "end", yaml.DocumentStartEvent: "document",
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A checked config; `origins` maps every dotted leaf to where its value was written; `path` is the file, if there was one."""

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
) -> Loaded:
    """defaults < config file (with its `extends` chain) < environment < overrides, validated as a whole.

    Args:
        source: a path, the name of a shipped config, or None for defaults alone.
        overrides: in the order given; the later wins.
        environ: None means os.environ; only ROBUSTCLI_ names are read.
        bind: also check every spec against its registry (imports torch).
        registries: None means the package's own, discovered here.
        without: dotted keys that are not taken from the file.

    Raises:
        ConfigError: `problems` lists every mistake as `file:line: a.b.c: what; did you mean …`.
    """
    faults: list[Fault] = []
    path = None if source is None else find_config(source)
    files = [node and pruned(node, without) for node in _read_chain(path, faults)] if path is not None else []
    environment = environment_layer(os.environ if environ is None else environ, faults, _read_flow)
    command_line = override_layer(overrides, faults, _read_flow)
    if None in files:  # a file that could not be read to its end says nothing about the rest
        raise config_error(faults)
    tree = default_layer()
    for layer in (*(node for node in files if node is not None), environment, command_line):
        tree = merge(tree, layer, rules(), faults)
    data = to_python(tree)
    faults += code_faults(tree)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        faults += schema_faults(error)
    if bind:
        faults += bind_faults(data, registries or Registries.discover())
    if faults:
        raise config_error(faults, tree)
    return Loaded(config, _origins(config, tree), path)


def _origins(config: Config, tree: Node) -> dict[str, str]:
    return {".".join(path): leaf_origin(tree, path) for path, _ in leaves(config.model_dump(mode="json"))}


def _read_chain(path: Path, faults: list[Fault]) -> list[Node | None]:
    """The trees of `path` and of what it extends, the most basic first; None for a file that cannot be read to its end."""
    chain: list[Node | None] = []
    seen: list[str] = []
    text = read_text(path)
    while True:
        seen.append(os.path.realpath(path))
        name = display(path)
        node = read_tree(text, name, faults)
        if node is None:
            return [None, *chain]
        assert isinstance(node.value, dict)
        parent = node.value.pop("extends", None)
        chain.insert(0, node)
        if parent is None or parent.value is None:
            return chain
        try:
            path = _parent(path, parent, seen)
            text = read_text(path)
        except ConfigError as error:
            faults.append(
                Fault("extends", error.problems[0] if error.problems else error.what, parent.origin)
            )
            return [None, *chain]


def _parent(path: Path, parent: Node, seen: list[str]) -> Path:
    """The file that `extends` names. Raises ConfigError."""
    name = parent.value
    if (
        not isinstance(name, str)
        or not name.endswith(SUFFIXES)
        or Path(name).is_absolute()
        or not name.isprintable()
    ):
        raise ConfigError(f"expected a .yaml file relative to this one, got {shown(to_python(parent))}")
    base = path.parent / name
    if os.path.realpath(base) in seen:
        raise ConfigError(f"{shown(name)} extends this file in a circle")
    if len(seen) >= MAX_EXTENDS:
        raise ConfigError(f"more than {MAX_EXTENDS} files in one extends chain")
    return base


def read_tree(text: str, name: str, faults: list[Fault]) -> Node | None:
    """The tree of one file; None (and a fault) when it cannot be read to its end or is no mapping."""
    before = len(faults)
    root = _build(text, lambda line: f"{name}:{line}", faults)
    if root is None:
        return None
    if isinstance(root.value, dict) and (root.value or len(faults) > before):
        return root
    empty = root.value is None or root.value == {}
    faults.append(
        Fault(
            "",
            "the file is empty"
            if empty
            else f"the top level must be a mapping such as `seed: 0`, got {shown(to_python(root))}",
            root.origin,
        )
    )
    return None


def _read_flow(text: str, origin: str, faults: list[Fault]) -> Node | None:
    """A quoted or flow value of an override or a variable."""
    return _build(text, lambda line: origin, faults)


def _build(text: str, where: Callable[[int], str], faults: list[Fault]) -> Node | None:
    try:
        root = Builder(_events(text), where, faults).document()
    except Stop as stop:
        faults.append(Fault("", stop.what, where(stop.line)))
        return None
    return root if root is not None else Node(None, where(1))


def _events(text: str) -> Iterator[Event]:
    """Neutral events. Raises Stop for what is not YAML."""
    line = 1
    try:
        event: Any
        for event in yaml.parse(text, Loader=_LOADER):
            kind = _KINDS.get(type(event))
            if kind is not None:
                line = event.start_mark.line + 1
                plain = kind == "scalar" and bool(event.implicit[0])
                yield Event(
                    kind,
                    line,
                    getattr(event, "value", ""),
                    getattr(event, "tag", None),
                    plain,
                    getattr(event, "anchor", None),
                )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            raise Stop(line, f"not YAML: {error.problem or error.context}") from None
        raise Stop(
            mark.line + 1, f"not YAML: {error.problem or error.context} (column {mark.column + 1})"
        ) from None
    except yaml.reader.ReaderError as error:
        raise Stop(
            text.count("\n", 0, error.position) + 1,
            f"not text: character {error.character!r} at position {error.position}",
        ) from None
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # the parser's own slips, such as an escape beyond Unicode
        raise Stop(line, f"not YAML: {error}") from None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a plain word would not read back as; writes values out instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve_plain(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def write_tree(data: Any) -> str:
    """Plain data as YAML that `read_tree` reads back unchanged."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False
    )
    return text
