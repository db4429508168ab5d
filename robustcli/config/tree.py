"""A config as a tree in which every node remembers where it was written; layers are merged here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from robustcli.config.number import Scalar
from robustcli.errors import ConfigError, printable

KeyPath: TypeAlias = tuple[str, ...]
DEFAULT = "default"
_MOST_PROBLEMS = 200


@dataclass(frozen=True)
class Node:
    """One value and its origin: `default`, `file.yaml:12`, `environment NAME`, `--eps` or `command line`."""

    value: Scalar | dict[str, Node] | list[Node]
    origin: str


@dataclass(frozen=True)
class Fault:
    """One mistake: the dotted path, what is wrong, and where it was written.

    Without an `origin` the mistake is where the value at `path` was written.
    """

    path: str
    what: str
    origin: str | None = None


@dataclass(frozen=True)
class Rules:
    """What merging must know of the schema.

    Paths are those of the schema: `*` stands for any list index.

    Args:
        specs: paths of all specs.
        exclusive: path of a section -> keys of which at most one is set.
        takes: whether a scalar may stand where a section, a spec or a list of them does; True elsewhere.
        keyed: path of what may be a section or a list of sections -> the key that tells the elements apart.
    """

    specs: frozenset[KeyPath] = frozenset()
    exclusive: Mapping[KeyPath, tuple[str, ...]] = field(default_factory=dict)
    takes: Callable[[KeyPath, Scalar], bool] = lambda path, value: True
    keyed: Mapping[KeyPath, str] = field(default_factory=dict)

    def is_spec(self, path: KeyPath) -> bool:
        """Whether a spec stands at `path`."""
        return path in self.specs or tuple(map(_any_index, path)) in self.specs

    def fits(self, path: KeyPath, value: Scalar | dict[str, Node] | list[Node]) -> bool:
        """Whether `value` may stand at `path`, as far as the kind of place goes: no scalar for a section."""
        if isinstance(value, (dict, list)):
            return True
        return self.takes(tuple(map(_any_index, path)), value)


def as_index(part: str) -> int | None:
    """`part` of a path as a place in a list, or None."""
    return int(part) if re.fullmatch("[0-9]{1,6}", part) else None


def _any_index(part: str) -> str:
    """`*` for a place in a list; any other part of a path is itself."""
    return part if as_index(part) is None else "*"


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


def pruned(root: Node, keys: Sequence[str]) -> Node:
    """`root` without the nodes at these dotted keys."""
    for key in keys:
        root = _without(root, key.split("."))
    return root


def _without(root: Node, path: Sequence[str]) -> Node:
    key, rest = path[0], path[1:]
    if not isinstance(root.value, dict) or key not in root.value:
        return root
    items = dict(root.value)
    if rest:
        items[key] = _without(items[key], rest)
    else:
        del items[key]
    return replace(root, value=items)


def merge(base: Node, over: Node, rules: Rules, faults: list[Fault], at: KeyPath = ()) -> Node:
    """`over` on top of `base`: mappings merge, everything else is replaced.

    A spec whose name changes replaces the old one whole, so it inherits no parameter of another method.
    A spec that states its name also replaces the schema's default, so a file means what it says.
    Of keys that exclude each other, the upper layer's choice clears the lower one's.
    A mapping whose keys are all numbers (`attacks.0.steps=40` makes one) changes elements of a list.
    The number one past the end appends an element; a larger one is a fault.
    One section over a list of such sections (`--norm l2` over three balls) changes the element of its key,
    and stands alone then. Without the key nobody knows which one is meant, which is a fault.
    A value that cannot stand where it does, such as `data: digits`, is not replaced by keys below it: the
    schema refuses it.
    """
    if rules.is_spec(at):
        base, over = as_spec(base, at, rules), as_spec(over, at, rules)
    if not isinstance(over.value, dict):
        return over
    if isinstance(base.value, list) and over.value and all(as_index(key) is not None for key in over.value):
        return _merge_list(base, base.value, over.value, rules, faults, at)
    if isinstance(base.value, list) and at in rules.keyed and over.value:
        return _one_of(base, base.value, over, rules, faults, at)
    if not rules.fits(at, base.value):
        return base
    if not isinstance(base.value, dict) or (rules.is_spec(at) and _replaces(base, base.value, over.value)):
        return over
    group = rules.exclusive.get(at, ())
    chosen = any(key in over.value and over.value[key].value is not None for key in group)
    merged = {key: node for key, node in base.value.items() if not (chosen and key in group)}
    for key, node in over.value.items():
        if key in merged:
            node = merge(merged[key], node, rules, faults, (*at, key))
        merged[key] = node
    return Node(merged, over.origin)


def _merge_list(
    base: Node, elements: list[Node], changes: dict[str, Node], rules: Rules, faults: list[Fault], at: KeyPath
) -> Node:
    result = list(elements)
    for key in sorted(changes, key=int):
        index = int(key)
        if index > len(result):
            faults.append(no_element((*at, key), len(result), changes[key].origin))
        elif index == len(result):
            result.append(changes[key])
        else:
            result[index] = merge(result[index], changes[key], rules, faults, (*at, key))
    return replace(base, value=result)


def _one_of(
    base: Node, elements: list[Node], over: Node, rules: Rules, faults: list[Fault], at: KeyPath
) -> Node:
    """The section `over` on top of that element of a list which has the same key; see `merge`."""
    assert isinstance(over.value, dict)
    key, name = rules.keyed[at], ".".join(at)
    if key not in over.value:
        first = next(iter(over.value))
        what = f"{name} is a list of {len(elements)}: write {name}.0.{first}, or {name}.{key} for one of them"
        faults.append(Fault(f"{name}.{first}", what, over.value[first].origin))
        return base
    wanted = over.value[key].value
    same = [item for item in elements if isinstance(item.value, dict) and _key_of(item, key) == wanted]
    return merge(same[0], over, rules, faults, (*at, "0")) if same else over


def _key_of(node: Node, key: str) -> Any:
    """The value at `key` of a mapping; None without one."""
    found = _child(node, key)
    return None if found is None else found.value


def no_element(path: KeyPath, length: int, origin: str) -> Fault:
    """The fault of a `path` that ends past the elements of a list."""
    elements = f"{length} element" if length == 1 else f"{length} elements"
    return Fault(".".join(path), f"no such element; the list has {elements}, counted from 0", origin)


def as_spec(node: Node, at: KeyPath, rules: Rules) -> Node:
    """At the path of a spec, the mapping {name: ...} for a bare name; any other node is itself."""
    if rules.is_spec(at) and isinstance(node.value, str):
        return Node({"name": node}, node.origin)
    return node


def _replaces(node: Node, base: dict[str, Node], over: dict[str, Node]) -> bool:
    """Whether the spec `over` replaces the spec `base` (of `node`) whole."""
    if "name" not in over:
        return False
    return node.origin == DEFAULT or "name" not in base or over["name"].value != base["name"].value


def locate(root: Node, path: Sequence[str]) -> tuple[Node, int]:
    """The deepest node on the way to `path`, and how many parts of the path it covers.

    A key with a dot in it, such as `robust_acc@linf:0.1`, covers as many parts as it has.
    """
    depth = 0
    while depth < len(path):
        widths = range(len(path) - depth, 0, -1)  # the longest key first
        keys = ((width, ".".join(path[depth : depth + width])) for width in widths)
        found = next(((width, below) for width, key in keys if (below := _child(root, key))), None)
        if found is None:
            break
        depth, root = depth + found[0], found[1]
    return root, depth


def _child(node: Node, part: str) -> Node | None:
    """What stands in `node` under this key or list index, or None."""
    if isinstance(node.value, dict):
        return node.value.get(part)
    index = as_index(part)
    if isinstance(node.value, list) and index is not None and index < len(node.value):
        return node.value[index]
    return None


def leaf_origin(root: Node, path: Sequence[str]) -> str:
    """Where the value of a leaf was written; `default` when no layer wrote it."""
    node, depth = locate(root, path)
    bare_name = list(path[depth:]) == ["name"] and isinstance(node.value, str)
    if depth == len(path) or bare_name:
        return node.origin
    return DEFAULT


def leaves(data: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of every scalar and every empty mapping or list of plain data."""
    if isinstance(data, dict) and data:
        for key, item in data.items():
            yield from leaves(item, (*at, str(key)))
    elif isinstance(data, list) and data:
        for index, item in enumerate(data):
            yield from leaves(item, (*at, str(index)))
    else:
        yield at, data


def matching(data: Any, pattern: KeyPath, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of all that `pattern` finds in plain data; `*` in it is any index of a list."""
    if not pattern:
        yield at, data
    elif pattern[0] == "*" and isinstance(data, list):
        for index, item in enumerate(data):
            yield from matching(item, pattern[1:], (*at, str(index)))
    elif isinstance(data, Mapping) and pattern[0] in data:
        yield from matching(data[pattern[0]], pattern[1:], (*at, pattern[0]))


def config_error(faults: Sequence[Fault], root: Node | None = None) -> ConfigError:
    """One ConfigError for all faults, in the order of the files and lines that caused them."""
    placed = [(_origin(fault, root), fault) for fault in faults]
    files = list(dict.fromkeys(origin.rpartition(":")[0] for origin, _ in placed))
    placed.sort(key=lambda item: _order(item[0], files))
    lines = [": ".join(filter(None, (origin, fault.path, fault.what))) for origin, fault in placed]
    problems = list(dict.fromkeys(map(printable, lines)))
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"... and {len(problems) - _MOST_PROBLEMS} more problems"]
    return ConfigError(problems[0], problems=problems)


def _origin(fault: Fault, root: Node | None) -> str:
    """Where the mistake was written: what the fault says, else the nearest node of `root`, else nothing."""
    if fault.origin is not None:
        return fault.origin
    if root is None:
        return ""
    return locate(root, fault.path.split("."))[0].origin


def _order(origin: str, files: list[str]) -> tuple[int, int]:
    """The file's place among `files` and the line. What has no line comes last."""
    name, _, line = origin.rpartition(":")
    if not line.isdigit():
        return len(files), 0
    return files.index(name), int(line)
