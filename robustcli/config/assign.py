"""Assignments to dotted keys become the tree of one layer, and none of them is lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from robustcli.config.tree import Fault, KeyPath, Node, Rules, as_index, as_spec, no_element, to_python
from robustcli.config.wording import shown


def insert(
    root: Node, path: Sequence[str], leaf: Node, rules: Rules, faults: list[Fault], at: KeyPath = ()
) -> Node:
    """`root`, which stands at `at`, with `leaf` at `path` below it. Mappings are made on the way.

    The order within a layer matters only where one key is given twice; then the later value wins. So
    `adversary=fgsm` and `adversary.steps=3` give the same spec either way, and `data={name: fake}` is
    `data.name=fake`. A value and keys below it exclude each other: the value stays and is a fault.
    """
    here = as_spec(root, at, rules)
    if not path:
        return _placed(here, leaf, rules, faults, at)
    key, below = path[0], (*at, path[0])
    if isinstance(here.value, list):
        return _in_list(here, here.value, path, leaf, rules, faults, at)
    if not isinstance(here.value, dict):
        _contradiction(here, below, rules, faults, at)
        return here
    child = here.value.get(key, Node({}, leaf.origin))
    return Node({**here.value, key: insert(child, path[1:], leaf, rules, faults, below)}, leaf.origin)


def _in_list(
    here: Node,
    elements: list[Node],
    path: Sequence[str],
    leaf: Node,
    rules: Rules,
    faults: list[Fault],
    at: KeyPath,
) -> Node:
    """`leaf` at `path` below the list `here`. The number one past the end appends an element."""
    index, below = as_index(path[0]), (*at, path[0])
    if index is None:
        _contradiction(here, below, rules, faults, at)
        return here
    if index > len(elements):
        faults.append(no_element(below, len(elements), leaf.origin))
        return here
    old = (elements[index:] or [Node({}, leaf.origin)])[0]
    new = insert(old, path[1:], leaf, rules, faults, below)
    return replace(here, value=[*elements[:index], new, *elements[index + 1 :]])


def _placed(here: Node, leaf: Node, rules: Rules, faults: list[Fault], at: KeyPath) -> Node:
    """`leaf` in the place of `here`, with the keys below it that `here` has already."""
    over = as_spec(leaf, at, rules)
    if not isinstance(here.value, dict) or not here.value:
        return leaf
    if isinstance(over.value, dict):
        if over is leaf and rules.is_spec(at) and _renamed(here.value, over.value):
            return leaf
        return _with_items(here, over.value, rules, faults, at)
    if isinstance(over.value, list) and all(as_index(key) is not None for key in here.value):
        ordered = dict(sorted(here.value.items(), key=lambda item: int(item[0])))
        return _with_items(over, ordered, rules, faults, at)
    _contradiction(leaf, (*at, next(iter(here.value))), rules, faults, at)
    return leaf


def _renamed(here: dict[str, Node], over: dict[str, Node]) -> bool:
    """Whether both specs state a name, and not the same."""
    return "name" in here and "name" in over and here["name"].value != over["name"].value


def _with_items(here: Node, items: dict[str, Node], rules: Rules, faults: list[Fault], at: KeyPath) -> Node:
    """`here` with each of the items below it."""
    for key, node in items.items():
        here = insert(here, [key], node, rules, faults, at)
    return here


def _contradiction(value: Node, below: KeyPath, rules: Rules, faults: list[Fault], at: KeyPath) -> None:
    """The fault of a value that has a key below it.

    A value that no section has is left to the schema, which says the same of it without the key.
    """
    if rules.fits(at, value.value):
        what = f"set to {shown(to_python(value))}, and {'.'.join(below)} is set too; keep one of the two"
        faults.append(Fault(".".join(at), what, value.origin))
