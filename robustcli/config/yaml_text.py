"""YAML text -> tree, and plain data -> YAML text. The only module that imports yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from robustcli.config.number import resolve_plain
from robustcli.config.parse import TOO_DEEP, Builder, Event, Unreadable
from robustcli.config.tree import Fault, Node, to_python
from robustcli.config.wording import shown

#: Both loaders give the same events; libyaml's is fast enough for 1 MiB of anything.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS = {
    yaml.ScalarEvent: "scalar",
    yaml.AliasEvent: "alias",
    yaml.MappingStartEvent: "map",
    yaml.SequenceStartEvent: "seq",
    yaml.MappingEndEvent: "end",
    yaml.SequenceEndEvent: "end",
    yaml.DocumentStartEvent: "document",
}


def read_tree(text: str, name: str, faults: list[Fault]) -> Node | None:
    """The tree of one file, a mapping.

    None, with a fault, when the text cannot be read to its end or is no mapping.
    Messages name the file by `name`.
    """
    before = len(faults)
    root = _build(text, lambda line: f"{name}:{line}", faults)
    if root is None:
        return None
    if isinstance(root.value, dict) and (root.value or len(faults) > before):
        return root
    if root.value in (None, {}):
        what = "the file is empty"
    else:
        what = f"the top level must be a mapping such as `seed: 0`, got {shown(to_python(root))}"
    faults.append(Fault("", what, root.origin))
    return None


def read_flow(text: str, origin: str, faults: list[Fault]) -> Node | None:
    """A quoted or flow value of an override or of a variable; None, with a fault, when it cannot be read."""
    return _build(text, lambda line: origin, faults)


def _build(text: str, where: Callable[[int], str], faults: list[Fault]) -> Node | None:
    try:
        root = Builder(_events(text), where, faults).document()
    except Unreadable as error:
        faults.append(Fault("", error.what, where(error.line)))
        return None
    return root or Node(None, where(1))


def _events(text: str) -> Iterator[Event]:
    """The parser's events in the words of `parse`. Raises Unreadable for what is not YAML."""
    line = 1
    try:
        event: Any
        for event in yaml.parse(text, Loader=_LOADER):
            kind = _KINDS.get(type(event))
            if kind is not None:
                line = event.start_mark.line + 1
                yield _event(event, kind, line)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _unreadable(error, text, line) from None


def _event(event: Any, kind: str, line: int) -> Event:
    return Event(
        kind,
        line,
        text=getattr(event, "value", ""),
        tag=getattr(event, "tag", None),
        plain=kind == "scalar" and bool(event.implicit[0]),
        anchor=getattr(event, "anchor", None),
    )


def _unreadable(error: Exception, text: str, line: int) -> Unreadable:
    """What the parser raised, with its line. `line` is that of the last event, for errors that name none.

    The parser's own slips, such as an escape beyond Unicode, are a ValueError or an OverflowError.
    """
    if isinstance(error, yaml.MarkedYAMLError):
        what = f"not YAML: {error.problem or error.context}"
        mark = error.problem_mark or error.context_mark
        if "nesting depth" in what:  # newer libyaml stops at 1,000 levels by itself, before it tells of any
            return Unreadable(line if mark is None else mark.line + 1, TOO_DEEP)
        if mark is None:
            return Unreadable(line, what)
        return Unreadable(mark.line + 1, f"{what} (column {mark.column + 1})")
    if isinstance(error, yaml.reader.ReaderError):
        what = f"not text: character {error.character!r} at position {error.position}"
        return Unreadable(text.count("\n", 0, error.position) + 1, what)
    return Unreadable(line, f"not YAML: {error}")


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
