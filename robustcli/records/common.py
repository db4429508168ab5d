"""What all rows share: their version, how one becomes JSON, and how one is read back and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from robustcli.errors import DataError

SCHEMA_VERSION = 1
_HINT = "records are written by robustcli and not edited by hand; measure again"


class Record(Protocol):
    """A frozen dataclass that is written as one JSON object."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""


Row = TypeVar("Row", bound=Record)


def plain(value: Any) -> Any:
    """`value` in the types that `json.loads` gives back: a dataclass becomes a dict, a tuple a list."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def require_finite(values: Mapping[str, float]) -> None:
    """Raises ValueError that names the first value which is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} is not finite")


def rebuild(row: Any, kinds: Sequence[str], build: Callable[[Mapping[str, Any]], Row]) -> Row:
    """The object that `build` makes of the JSON object `row`.

    Raises DataError E-RECORD when `row` is of another kind or version, when `build` refuses it, or when the
    object writes other JSON than `row`: an accuracy, for example, that does not follow from its counts.
    """
    if not _is_row(row, kinds):
        raise _refused(f"not a row of kind {' or '.join(kinds)}, schema version {SCHEMA_VERSION}")
    try:
        built = build(row)
        again = built.to_json()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(f"not a row of kind {row['kind']}: {error}") from error
    differing = _first_difference(row, again)
    if differing is not None:
        raise _refused(f"{differing} does not follow from the counts of this row of kind {row['kind']}")
    return built


def from_fields(cls: type[Row], row: Mapping[str, Any]) -> Row:
    """`cls` from the entries of `row` that are its fields; the others are left out.

    Raises TypeError for a missing field, and for a field declared `int` that holds anything else (even True).
    """
    known = {f.name: f for f in fields(cls) if f.name in row}
    for name, declared in known.items():
        if declared.type == "int" and type(row[name]) is not int:
            raise TypeError(f"{name}={row[name]!r} is not a whole number")
    return cls(**{name: row[name] for name in known})


def _is_row(row: Any, kinds: Sequence[str]) -> bool:
    return (
        isinstance(row, Mapping) and row.get("kind") in kinds and row.get("schema_version") == SCHEMA_VERSION
    )


def _refused(what: str) -> DataError:
    return DataError(what, hint=_HINT, code="E-RECORD")


def _first_difference(row: Mapping[str, Any], again: Mapping[str, Any]) -> str | None:
    """The first key that only one of the two has, else the first with two values; None when they agree."""
    differing = sorted(set(row) ^ set(again))
    differing = differing or [name for name in again if not _same(row[name], again[name])]
    return next(iter(differing), None)


def _same(a: Any, b: Any) -> bool:
    """Equal; floats to 1e-9, since another scipy may round an interval differently."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return bool(a == b)
