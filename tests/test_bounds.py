"""What may be a number in YAML has bounds: a wrong one is found at reading, not in the middle of a run."""

import typing
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field

from robustcli import registry
from robustcli.registry import Registry

KINDS = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
#: "registry name.parameter" -> why no value is wrong. Empty, as no value of ours may be without a meaning.
FREE: dict[str, str] = {}


def unbounded(annotation: Any, bounded: bool = False) -> bool:
    """Whether a number inside an annotation (a union, a tuple of them) has no bound."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        marks = [
            mark for item in arguments[1:] for mark in (item, *getattr(item, "metadata", ()))
        ]  # pydantic's Field holds its bounds
        return unbounded(arguments[0], bounded or any(isinstance(mark, (Ge, Gt, Le, Lt)) for mark in marks))
    if typing.get_origin(annotation) is Literal:
        return False
    return (annotation in (int, float) and not bounded) or any(unbounded(part) for part in arguments)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_number_of_a_registered_function_has_a_bound(kind: str) -> None:
    entries = list(KINDS[kind])
    assert entries
    found = [
        f"{kind} {entry.name}.{p.name}"
        for entry in entries
        for p in registry.parameters(entry.fn).values()
        if unbounded(p.annotation)
    ]
    assert [name for name in found if name not in FREE] == []


def test_the_check_sees() -> None:
    assert all(
        map(
            unbounded,
            (
                int,
                float,
                int | None,
                tuple[float, ...],
                list[float] | None,
                Annotated[int, "no bound", Field(description="n")],
            ),
        )
    )
    bounded = (
        bool,
        Literal[1, 2],
        Annotated[int, Ge(1)],
        Annotated[float, Gt(0)] | None,
        tuple[Annotated[int, Lt(3)], ...],
        Annotated[int, Field(ge=1)],
    )
    assert not any(map(unbounded, bounded))


def test_free_names_are_there_and_explained() -> None:
    known = {
        f"{kind} {entry.name}.{name}"
        for kind, found in KINDS.items()
        for entry in found
        for name in registry.parameters(entry.fn)
    }
    assert set(FREE) <= known and all(FREE.values())
