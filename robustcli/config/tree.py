"""A config as a tree whose every node remembers where it was written; layers are merged here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from robustcli.config.number import Scalar
from robustcli.errors import ConfigError, printable

Path_: TypeAlias = tuple[str, ...]
DEFAULT = "default"
_MOST_PROBLEMS = 200


@dataclass(frozen=True)
class Node:
    """One value and its origin: `default`, `file.yaml:12`, `environment NAME`, `--eps` or `command line`."""

    value: Scalar | dict[str, Node] | list[Node]
    origin: str


@dataclass(frozen=True)
class Fault:
    """One mistake: the dotted path, what is wrong, and where (None: the origin of the node at `path`)."""

    path: str
    what: str
    origin: str | None = None


@dataclass(frozen=True)
class Rules:
    """What merging must know of the schema: which paths hold specs (`*` = any list index), which keys exclude each other."""

    specs: frozenset[Path_] = frozenset()
    exclusive: Mapping[Path_, tuple[str, ...]] = field(default_factory=dict)

    def is_spec(self, path: Path_) -> bool:
        return (
            path in self.specs
            or tuple("*" if as_index(part) is not None else part for part in path) in self.specs
        )


def as_index(part: str) -> int | None:
    """`part` as a place in a list, or None."""
    return int(part) if re.fullmatch("[0-9]{1,6}", part) else None


def from_python(value: Any, origin: str) -> Node:
    """Plain data as a tree with one origin."""
    if isinstance(value, Mapping):
        return Node({str(key): from_python(item, origin) for key, item in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Node([from_python(item, origin) for item in value], origin)
    return Node(value, origin)


def to_python(node: Node) -> Any:
    """The tree as plain data."""
    if isinstance(node.value, dict):
        return {key: to_python(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [to_python(item) for item in node.value]
    return node.value


def insert(root: Node, path: Sequence[str], leaf: Node, rules: Rules, at: Path_ = ()) -> Node:
    """`root` with `leaf` at `path`; mappings are made on the way. Order within a layer does not matter for specs:
    `adversary=fgsm` and `adversary.steps=3` give the same spec either way."""
    here = _as_spec(root, at, rules)
    if not path:
        spec = _as_spec(leaf, at, rules)
        return (
            Node({**here.value, **spec.value}, leaf.origin)
            if spec is not leaf and isinstance(here.value, dict) and isinstance(spec.value, dict)
            else leaf
        )
    index = as_index(path[0])
    if isinstance(here.value, list) and index is not None and index < len(here.value):
        elements = list(here.value)
        elements[index] = insert(elements[index], path[1:], leaf, rules, (*at, path[0]))
        return replace(here, value=elements)
    items = dict(here.value) if isinstance(here.value, dict) else {}
    items[path[0]] = insert(items.get(path[0], Node({}, leaf.origin)), path[1:], leaf, rules, (*at, path[0]))
    return Node(items, leaf.origin)


def pruned(root: Node, keys: Sequence[str]) -> Node:
    """`root` without the nodes at these dotted keys."""
    for key in keys:
        first, _, rest = key.partition(".")
        if isinstance(root.value, dict) and first in root.value:
            kept = {name: node for name, node in root.value.items() if name != first}
            root = replace(
                root, value={**root.value, first: pruned(root.value[first], [rest])} if rest else kept
            )
    return root


def merge(base: Node, over: Node, rules: Rules, faults: list[Fault], at: Path_ = ()) -> Node:
    """`over` on top of `base`: mappings merge, everything else is replaced.

    A spec whose name changes replaces the old one whole, so no parameter of another method is inherited; one that states
    its name also replaces the schema's default, so a file means what it says. Of keys that exclude each other the upper
    layer's choice clears the lower one's. A mapping whose keys are all numbers (from `attacks.0.steps=40`) changes
    elements of a list; one past the end appends, further is a fault.
    """
    if rules.is_spec(at):
        base, over = _as_spec(base, at, rules), _as_spec(over, at, rules)
    if not isinstance(over.value, dict):
        return over
    if isinstance(base.value, list) and over.value and all(as_index(key) is not None for key in over.value):
        return _merge_list(base, base.value, over.value, rules, faults, at)
    if not isinstance(base.value, dict) or (rules.is_spec(at) and _replaces(base, base.value, over.value)):
        return over
    group = rules.exclusive.get(at, ())
    chosen = any(key in over.value and over.value[key].value is not None for key in group)
    merged = {key: node for key, node in base.value.items() if not (chosen and key in group)}
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node, rules, faults, (*at, key)) if key in merged else node
    return Node(merged, over.origin)


def _merge_list(
    base: Node, elements: list[Node], changes: dict[str, Node], rules: Rules, faults: list[Fault], at: Path_
) -> Node:
    result = list(elements)
    for key in sorted(changes, key=int):
        index = int(key)
        if index > len(result):
            end = f"the list has {len(result)} element{'s' if len(result) != 1 else ''}, counted from 0"
            faults.append(Fault(".".join((*at, key)), f"no such element; {end}", changes[key].origin))
        elif index == len(result):
            result.append(changes[key])
        else:
            result[index] = merge(result[index], changes[key], rules, faults, (*at, key))
    return replace(base, value=result)


def _as_spec(node: Node, at: Path_, rules: Rules) -> Node:
    """A bare name at a spec path is {name: …}."""
    return Node({"name": node}, node.origin) if rules.is_spec(at) and isinstance(node.value, str) else node


def _replaces(node: Node, base: dict[str, Node], over: dict[str, Node]) -> bool:
    return "name" in over and (
        node.origin == DEFAULT or "name" not in base or over["name"].value != base["name"].value
    )


def locate(root: Node, path: Sequence[str]) -> tuple[Node, int]:
    """The deepest node on the way to `path`, and how many parts of the path it covers."""
    for depth, part in enumerate(path):
        below, index = root.value, as_index(part)
        if isinstance(below, dict) and part in below:
            root = below[part]
        elif isinstance(below, list) and index is not None and index < len(below):
            root = below[index]
        else:
            return root, depth
    return root, len(path)


def leaf_origin(root: Node, path: Sequence[str]) -> str:
    """Where the value of a leaf was written; `default` when no layer wrote it."""
    node, depth = locate(root, path)
    bare_name = list(path[depth:]) == ["name"] and isinstance(node.value, str)
    return node.origin if depth == len(path) or bare_name else DEFAULT


def leaves(data: Any, at: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """(path, value) of every scalar and every empty mapping or list of plain data."""
    if isinstance(data, dict) and data:
        for key, item in data.items():
            yield from leaves(item, (*at, str(key)))
    elif isinstance(data, list) and data:
        for index, item in enumerate(data):
            yield from leaves(item, (*at, str(index)))
    else:
        yield at, data


def config_error(faults: Sequence[Fault], root: Node | None = None) -> ConfigError:
    """One ConfigError for all faults, in the order of the files and lines that caused them."""
    placed = []
    for fault in faults:
        origin = fault.origin
        if origin is None:
            origin = locate(root, fault.path.split("."))[0].origin if root is not None else ""
        placed.append((origin, fault))
    files = list(dict.fromkeys(origin.rpartition(":")[0] for origin, _ in placed))
    placed.sort(key=lambda item: _order(item[0], files))
    problems = list(
        dict.fromkeys(
            printable(": ".join(part for part in (origin, f.path, f.what) if part)) for origin, f in placed
        )
    )
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"... and {len(problems) - _MOST_PROBLEMS} more problems"]
    return ConfigError(problems[0], problems=problems)


def _order(origin: str, files: list[str]) -> tuple[int, int]:
    name, _, line = origin.rpartition(":")
    return (files.index(name), int(line)) if line.isdigit() else (len(files), 0)
