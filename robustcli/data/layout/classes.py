"""`data.classes`: the order of the classes as the user states it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robustcli.config.sections import DataConfig
from robustcli.data.files import open_regular
from robustcli.data.layout.words import in_order
from robustcli.errors import ConfigError, DataError

_MOST_BYTES = 16 * 2**20
_HINT = "a FILE has one name a line, or is JSON: [names], or {name: label}"


def stated_classes(config: DataConfig) -> tuple[str, ...] | None:
    """The names in `data.classes`, in the order of their labels; None where it is null.

    Raises:
        ConfigError: a name that is listed twice, or has control characters.
        DataError: the file cannot be read.
    """
    if config.classes is None:
        return None
    names = config.classes
    if not isinstance(names, list):
        names = read_names(Path(names).expanduser())
    twice = [name for name, count in Counter(names).items() if count > 1]
    odd = [name for name in names if not name.isprintable() or not name]
    for what, found in (("is listed twice", twice), ("is no printable name", odd)):
        if found:
            raise ConfigError(f"class {found[0]!r} {what}", where="data.classes", hint=_HINT)
    return tuple(names)


def chosen_order(stated: tuple[str, ...] | None, found: Iterable[str], *, where: str) -> tuple[str, ...]:
    """All classes in the order of their labels: as `data.classes` states it, else sorted.

    Args:
        stated: the names in `data.classes`, see `stated_classes`.
        found: the class names that the data have. `data.classes` may name more.
        where: for messages.

    Raises:
        DataError: E-CLASS, a class of the data that `data.classes` does not name.
    """
    if stated is None:
        return in_order(found)
    unknown = sorted(set(found) - set(stated))
    if unknown:
        raise DataError(
            f"data.classes does not name the class {unknown[0]!r}",
            where=where,
            hint=f"data.classes has {len(stated)} names; add this one, or spell it as the data do",
            code="E-CLASS",
        )
    return stated


def read_names(path: Path) -> list[str]:
    """The names in a file: one a line, a JSON list, or JSON {name: label}."""
    with open_regular(path) as stream:
        stored = stream.read(_MOST_BYTES)
    try:
        text = stored.decode("utf-8-sig")
        if text.lstrip().startswith(("[", "{")):
            return _listed(json.loads(text))
    except (ValueError, RecursionError, TypeError) as error:
        raise DataError(f"not a list of class names: {error}", where=str(path), hint=_HINT) from error
    names = [line.strip() for line in text.splitlines()]
    return [name for name in names if name]


def _listed(stored: Any) -> list[str]:
    """Names of a JSON list or of {name: label}. Raises ValueError, TypeError."""
    if isinstance(stored, dict):
        if sorted(stored.values()) != list(range(len(stored))):
            raise ValueError("the labels are not 0 to K - 1")
        stored = sorted(stored, key=lambda name: int(stored[name]))
    if not all(isinstance(name, str) for name in stored):
        raise ValueError("a name is no text")
    return list(stored)
