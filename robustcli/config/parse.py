"""YAML events -> tree: our own construction, so that every limit and every oddity of YAML has one clear answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from robustcli.config.number import Scalar, parse_text, resolve_plain, shown
from robustcli.config.tree import Fault, Node

MAX_DEPTH = 32
MAX_NODES = 10_000  # after aliases are expanded
MAX_KEY = 200
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")


@dataclass(frozen=True)
class Event:
    """One parser event. kind: scalar alias map seq end document."""

    kind: str
    line: int
    text: str = ""
    tag: str | None = None
    plain: bool = False
    anchor: str | None = None


class Stop(Exception):
    """The file cannot be read further."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line, self.what = line, what


@dataclass(frozen=True)
class _Built:
    node: Node
    size: int = 1  # nodes after expansion
    height: int = 1


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
        """The tree, or None when the stream is empty. Raises Stop."""
        root: Node | None = None
        for event in self.events:
            if event.kind == "document":
                if root is not None:
                    raise Stop(event.line, "a second document starts here; a config is one document")
                root = self._build(next(self.events), (), 1).node
        return root

    def _build(self, event: Event, path: tuple[str, ...], depth: int) -> _Built:
        if event.kind == "alias":
            return self._alias(event, depth)
        self._count(1, event.line)
        if depth > MAX_DEPTH:
            raise Stop(event.line, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor is not None:
            if event.anchor in self.anchors:
                raise Stop(event.line, f"anchor {shown('&' + event.anchor)} is defined twice")
            self.anchors[event.anchor] = None
        if event.kind == "scalar":
            built = _Built(Node(self._scalar(event, path), self.where(event.line)))
        else:
            self._check_tag(event, path, "map" if event.kind == "map" else "seq")
            built = self._map(event, path, depth) if event.kind == "map" else self._seq(event, path, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = built
        return built

    def _count(self, nodes: int, line: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise Stop(line, f"more than {MAX_NODES:,} values after aliases are expanded")

    def _alias(self, event: Event, depth: int) -> _Built:
        name = shown("*" + (event.anchor or ""))
        if (event.anchor or "") not in self.anchors:
            raise Stop(event.line, f"alias {name} has no anchor")
        target = self.anchors[event.anchor or ""]
        if target is None:
            raise Stop(event.line, f"alias {name} contains itself")
        self._count(target.size, event.line)
        if depth + target.height - 1 > MAX_DEPTH:
            raise Stop(event.line, f"nested deeper than {MAX_DEPTH} levels")
        return target

    def _scalar(self, event: Event, path: tuple[str, ...]) -> Scalar:
        if event.tag is not None and event.tag not in _TEXT_TAGS:
            self._check_tag(event, path, "str")
        return resolve_plain(event.text) if event.plain and event.tag is None else event.text

    def _check_tag(self, event: Event, path: tuple[str, ...], allowed: str) -> None:
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{allowed}"):
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self._fault(
                path,
                event.line,
                f"tag {shown(tag)} is not allowed: a config is plain text, numbers, lists and mappings",
            )

    def _seq(self, event: Event, path: tuple[str, ...], depth: int) -> _Built:
        items: list[Node] = []
        size, height = 1, 1
        while (item := next(self.events)).kind != "end":
            built = self._build(item, (*path, str(len(items))), depth + 1)
            items.append(built.node)
            size, height = size + built.size, max(height, built.height + 1)
        return _Built(Node(items, self.where(event.line)), size, height)

    def _map(self, event: Event, path: tuple[str, ...], depth: int) -> _Built:
        items: dict[str, Node] = {}
        size, height = 1, 1
        while (item := next(self.events)).kind != "end":
            key_built = self._build(item, path, depth + 1)
            key = self._key(key_built.node, item, path)
            built = self._build(next(self.events), (*path, key or "?"), depth + 1)
            size, height = (
                size + key_built.size + built.size,
                max(height, built.height + 1, key_built.height + 1),
            )
            if key is not None and key in items:
                self._fault((*path, key), item.line, f"duplicate key; the first is at {items[key].origin}")
            elif key is not None:
                items[key] = replace(built.node, origin=self.where(item.line))
        return _Built(Node(items, self.where(event.line)), size, height)

    def _key(self, node: Node, event: Event, path: tuple[str, ...]) -> str | None:
        """The key, or None (and a fault) when it is not usable."""
        if event.kind != "scalar" or not isinstance(node.value, str):
            self._fault(
                path,
                event.line,
                f"keys must be text, got {shown(node.value)}"
                if event.kind != "alias"
                else "keys must be text, got an alias",
            )
        elif event.plain and node.value == "<<":
            self._fault(
                path, event.line, "the merge key << is not supported; write the keys out, or use extends"
            )
        elif len(node.value) > MAX_KEY:
            self._fault(
                path, event.line, f"a key of {len(node.value)} characters; the longest allowed is {MAX_KEY}"
            )
        else:
            try:
                return parse_text(node.value)
            except ValueError as error:
                self._fault(path, event.line, f"key {shown(node.value)}: {error}")
        return None

    def _fault(self, path: tuple[str, ...], line: int, what: str) -> None:
        self.faults.append(Fault(".".join(path), what, self.where(line)))
