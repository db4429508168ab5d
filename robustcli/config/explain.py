"""A pydantic error in the words of a config's author."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from robustcli.config.tree import KeyPath
from robustcli.config.wording import shown, with_hint
from robustcli.registry import suggestion

_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}
_KINDS = {
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}


def explain(error: ErrorDetails) -> str:
    """What is wrong, and where possible what was meant."""
    kind, got, ctx = error["type"], shown(error["input"]), error.get("ctx", {})
    if kind == "value_error":
        return str(ctx["error"])
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        return f"must be {sign} {ctx[key]:g}, got {got}"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", str(ctx["expected"]))
        hint = suggestion(str(error["input"])[:80], words).strip()
        return with_hint(f"expected {ctx['expected']}, got {got}", hint)
    if kind in _KINDS:
        hint = "the section is empty: remove it or give it keys" if error["input"] is None else ""
        return with_hint(f"expected {_KINDS[kind]}, got {got}", hint)
    if kind == "missing":
        return f"missing; {_instead_of(str(error['loc'][-1]), error['input'])}"
    if kind == "too_short":
        return f"needs at least {ctx['min_length']} of them, got {ctx['actual_length']}"
    if kind == "too_long":
        return f"at most {ctx['max_length']} of them are allowed, got {ctx['actual_length'] or 'more'}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "none_required":
        return f"expected null, got {got}"
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {got}"


def _instead_of(key: str, section: Any) -> str:
    """What `section` may hold in place of the missing `key`, else how to write it."""
    written = list(section) if isinstance(section, dict) else []
    beginning = next((str(name) for name in written if str(name).startswith(f"{key}:")), "")
    if glued(beginning):
        return glued(beginning)
    near = difflib.get_close_matches(key, written, n=1)
    if near:
        return f"did you mean it by {near[0]!r}?"
    return f"write {{{key}: ...}}"


def glued(key: str) -> str:
    """The hint for a key such as `name:awp`, where somebody meant `name: awp`; empty for any other key."""
    name, _, value = key.partition(":")
    if value and name.isidentifier():
        return f"YAML wants a space after the colon: {{{name}: {value}}}"
    return ""


def unknown_key(path: KeyPath, known: Mapping[KeyPath, list[str]]) -> str:
    """The message for a key that its section lacks: another section that has it, else the nearest key."""
    section, key = path[:-1], path[-1]
    if glued(key):
        return f"unknown key; {glued(key)}"
    homes = [".".join((*at, key)) for at, keys in known.items() if key in keys and _may_be_meant(at, path)]
    if homes:
        return f"unknown key; did you mean {' or '.join(repr(home) for home in homes[:2])}?"
    siblings = known.get(section) or known.get((*section[:-1], "*"), [])
    hint = suggestion(key, siblings).strip()
    if siblings and not hint:
        hint = f"known here: {', '.join(siblings)}"
    return with_hint("unknown key", hint)


def _may_be_meant(section: KeyPath, path: KeyPath) -> bool:
    """Whether the key at `path` may belong into another `section`. A `name` may not: every spec has one."""
    return section != path[:-1] and "*" not in section and path[-1] != "name"


def plain_path(location: tuple[Any, ...]) -> KeyPath:
    """Pydantic's location as a dotted path, without the tags of unions and the markers of keys in it."""
    return tuple(str(part) for part in location if not _is_marker(part))


def _is_marker(part: Any) -> bool:
    return isinstance(part, str) and re.fullmatch(r"<\w+>|\[key\]", part) is not None
