"""A pydantic error in the words of a config's author."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from robustcli.config.number import shown
from robustcli.config.tree import Path_
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
        return f"expected {ctx['expected']}, got {got}" + (f"; {hint}" if hint else "")
    if kind in _KINDS:
        empty = "; the section is empty: remove it or give it keys" if error["input"] is None else ""
        return f"expected {_KINDS[kind]}, got {got}{empty}"
    if kind == "missing":
        key, there = str(error["loc"][-1]), list(error["input"]) if isinstance(error["input"], dict) else []
        if said := next((glued(str(item)) for item in there if str(item).startswith(f"{key}:")), ""):
            return f"missing; {said}"
        near = difflib.get_close_matches(key, there, n=1)
        return f"missing; did you mean it by {near[0]!r}?" if near else f"missing; write {{{key}: ...}}"
    if kind == "too_short":
        return f"needs at least {ctx['min_length']} of them, got {ctx['actual_length']}"
    if kind == "too_long":
        return f"at most {ctx['max_length']} of them are allowed, got {ctx['actual_length'] or 'more'}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "none_required":
        return f"expected null, got {got}"
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {got}"


def glued(key: str) -> str:
    """What to say of the key `name:awp`, which YAML reads where somebody meant `name: awp`; empty for any other key."""
    name, colon, value = key.partition(":")
    return (
        f"YAML wants a space after the colon: {{{name}: {value}}}"
        if colon and name.isidentifier() and value
        else ""
    )


def unknown_key(path: Path_, known: Mapping[Path_, list[str]]) -> str:
    """The message for a key that its section does not have: the section that has it, else the nearest key."""
    section, key = path[:-1], path[-1]
    if glued(key):
        return f"unknown key; {glued(key)}"
    homes = [
        ".".join((*at, key))
        for at, keys in known.items()
        if key in keys and "*" not in at and (at != () or section != ()) and key != "name"
    ]
    if homes:
        return f"unknown key; did you mean {' or '.join(repr(home) for home in homes[:2])}?"
    siblings = known.get(section) or []
    hint = suggestion(key, siblings).strip() or (f"known here: {', '.join(siblings)}" if siblings else "")
    return "unknown key" + (f"; {hint}" if hint else "")


def plain_path(loc: tuple[Any, ...]) -> Path_:
    """Pydantic's location as a dotted path's parts: tags of unions and markers of keys are its own and dropped."""
    return tuple(
        str(part) for part in loc if not (isinstance(part, str) and re.fullmatch(r"<\w+>|\[key\]", part))
    )
