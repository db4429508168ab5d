"""YAML events -> tree.

We construct the tree ourselves, so that every limit and every oddity of YAML has one clear answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from robustcli.config.number import Scalar, parse_text, resolve_plain
from robustcli.config.tree import Fault, KeyPath, Node
from robustcli.config.wording import shown

MAX_DEPTH = 32
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
MAX_NODES = 10_000  # after aliases are expanded
MAX_KEY = 200


@dataclass(frozen=True)
class Event:
    """One parser event; `kind` is scalar, alias, map, seq, end or document."""

    kind: str
    line: int
    text: str = ""
    tag: str | None = None
    plain: bool = False
    anchor: str | None = None


class Unreadable(Exception):
    """The text cannot be read past this line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line, self.what = line, what


@dataclass(frozen=True)
class _Built:
    """A node, and how many nodes and levels it has after aliases are expanded."""

    node: Node
    size: int = 1
    height: int = 1


def _built_from(node: Node, parts: list[_Built]) -> _Built:
    """The list or mapping `node`, which holds these parts."""
    size, height = sum(part.size for part in parts), max((part.height for part in parts), default=0)
    return _Built(node, 1 + size, 1 + height)


class Builder:
    """Builds the one document of a stream.

    Args:
        events: of the whole stream, read lazily: nothing past a broken limit is parsed.
        where: line number -> origin.
        faults: mistakes that do not stop the reading are appended here.
    """

    def __init__(self, events: Iterator[Event], where: Callable[[int], str], faults: list[Fault]) -> None:
        self.events, self.where, self.faults = events, where, faults
        self.anchors: dict[str, _Built | None] = {}  # None: still being built
        self.nodes = 0

    def document(self) -> Node | None:
        """The tree, or None when the stream is empty. Raises Unreadable."""
        root: Node | None = None
        for event in self.events:
            if event.kind == "document":
                if root is not None:
                    raise Unreadable(event.line, "a second document starts here; a config is one document")
                root = self._build(next(self.events), (), 1).node
        return root

    def _build(self, event: Event, path: KeyPath, depth: int) -> _Built:
        if event.kind == "alias":
            return self._alias(event, depth)
        self._count(1, event.line)
        if depth > MAX_DEPTH:
            raise Unreadable(event.line, TOO_DEEP)
        if event.anchor is not None:
            if event.anchor in self.anchors:
                raise Unreadable(event.line, f"anchor {shown('&' + event.anchor)} is defined twice")
            self.anchors[event.anchor] = None
        built = self._contents(event, path, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = built
        return built

    def _contents(self, event: Event, path: KeyPath, depth: int) -> _Built:
        if event.kind == "scalar":
            return _Built(Node(self._scalar(event, path), self.where(event.line)))
        self._check_tag(event, path, event.kind)
        if event.kind == "map":
            return self._map(event, path, depth)
        return self._seq(event, path, depth)

    def _count(self, nodes: int, line: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise Unreadable(line, f"more than {MAX_NODES:,} values after aliases are expanded")

    def _alias(self, event: Event, depth: int) -> _Built:
        anchor = event.anchor or ""
        name = shown("*" + anchor)
        if anchor not in self.anchors:
            raise Unreadable(event.line, f"alias {name} has no anchor")
        target = self.anchors[anchor]
        if target is None:
            raise Unreadable(event.line, f"alias {name} contains itself")
        self._count(target.size, event.line)
        if depth + target.height - 1 > MAX_DEPTH:
            raise Unreadable(event.line, TOO_DEEP)
        return target

    def _scalar(self, event: Event, path: KeyPath) -> Scalar:
        self._check_tag(event, path, "str")
        if event.plain and event.tag is None:
            return resolve_plain(event.text)
        return event.text

    def _check_tag(self, event: Event, path: KeyPath, allowed: str) -> None:
        if event.tag in (None, "!", f"tag:yaml.org,2002:{allowed}"):
            return
        tag = shown(str(event.tag).replace("tag:yaml.org,2002:", "!!"))
        what = f"tag {tag} is not allowed: a config is plain text, numbers, lists and mappings"
        self._fault(path, event.line, what)

    def _seq(self, event: Event, path: KeyPath, depth: int) -> _Built:
        parts: list[_Built] = []
        while (item := next(self.events)).kind != "end":
            parts.append(self._build(item, (*path, str(len(parts))), depth + 1))
        return _built_from(Node([part.node for part in parts], self.where(event.line)), parts)

    def _map(self, event: Event, path: KeyPath, depth: int) -> _Built:
        items: dict[str, Node] = {}
        parts: list[_Built] = []
        while (item := next(self.events)).kind != "end":
            key_part = self._build(item, path, depth + 1)
            key = self._key(key_part.node, item, path)
            value_part = self._build(next(self.events), (*path, key or "?"), depth + 1)
            parts += [key_part, value_part]
            if key is not None and key in items:
                self._fault((*path, key), item.line, f"duplicate key; the first is at {items[key].origin}")
            elif key is not None:
                items[key] = replace(value_part.node, origin=self.where(item.line))
        return _built_from(Node(items, self.where(event.line)), parts)

    def _key(self, node: Node, event: Event, path: KeyPath) -> str | None:
        """The key, or None (and a fault) when it is not usable."""
        try:
            return _checked_key(node, event)
        except ValueError as error:
            self._fault(path, event.line, str(error))
            return None

    def _fault(self, path: KeyPath, line: int, what: str) -> None:
        self.faults.append(Fault(".".join(path), what, self.where(line)))


def _checked_key(node: Node, event: Event) -> str:
    """The key that `node` is. Raises ValueError, which says why it is not usable."""
    if event.kind == "alias":
        raise ValueError("keys must be text, got an alias")
    if event.kind != "scalar" or not isinstance(node.value, str):
        raise ValueError(f"keys must be text, got {shown(node.value)}")
    if event.plain and node.value == "<<":
        raise ValueError("the merge key << is not supported; write the keys out, or use extends")
    if len(node.value) > MAX_KEY:
        raise ValueError(f"a key of {len(node.value)} characters; the longest allowed is {MAX_KEY}")
    try:
        return parse_text(node.value)
    except ValueError as error:
        raise ValueError(f"key {shown(node.value)}: {error}") from None
