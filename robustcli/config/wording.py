"""How a message about a config quotes a value and adds a hint."""

from __future__ import annotations

from typing import Any

_LONGEST = 60


def shown(value: Any) -> str:
    """`value` as a message quotes it: short, on one line, control characters escaped."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, str):
        value = value[:200]
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    return text[: _LONGEST - 4] + "...'"


def with_hint(what: str, hint: str) -> str:
    """`what; hint`, or `what` alone when there is no hint."""
    return "; ".join(filter(None, (what, hint)))
