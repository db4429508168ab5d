"""A spec meets the function it names: the keyword-only arguments are the schema, pydantic does the conversion."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError

from robustcli import registry as registered
from robustcli.config.explain import explain, glued
from robustcli.config.number import Flag, Int, Number, Text
from robustcli.config.spec import Spec
from robustcli.config.tree import Fault, config_error
from robustcli.registry import Param, Registry, parameters, suggestion

AnyRegistry = Registry[Any, Any]
_STRICT: dict[Any, Any] = {float: Number, int: Int, bool: Flag, str: Text}
TORCHATTACKS = (
    "torchattacks:"  # attacks of that package: checked when a run starts, so that a config loads without it
)


@dataclass(frozen=True)
class Bound:
    """A registered function and its checked keyword arguments: `bound.fn(…, **bound.params)`."""

    name: str
    fn: Callable[..., Any]
    params: dict[str, Any]


@dataclass(frozen=True)
class Registries:
    """The registries that names in a config are looked up in."""

    attacks: AnyRegistry
    objectives: AnyRegistry
    models: AnyRegistry
    optimizers: AnyRegistry
    schedules: AnyRegistry
    datasets: AnyRegistry
    regularizers: AnyRegistry
    steps: AnyRegistry
    hooks: AnyRegistry
    trackers: AnyRegistry

    @classmethod
    def discover(cls) -> Registries:
        """The package's own, filled (this imports torch)."""
        return cls(*(getattr(registered, name) for name in cls.__dataclass_fields__))


def bind_spec(registry: AnyRegistry, spec: Spec, path: str) -> Bound:
    """`spec` bound to its entry of `registry`; `path` names it in messages. Raises ConfigError with every mistake of the spec."""
    bound, faults = check_spec(registry, spec.name, spec.params, path, list(type(spec).model_fields))
    if bound is None:
        raise config_error(
            faults
            or [
                Fault(
                    f"{path}.name",
                    f"{spec.name[:80]} has no function here to bind; evaluation.outside makes the call",
                )
            ]
        )
    return bound


def check_spec(
    registry: AnyRegistry, name: str, params: Mapping[str, Any], path: str, fields: Sequence[str] = ("name",)
) -> tuple[Bound | None, list[Fault]]:
    """(bound, []) or (None, every mistake). `fields`: keys of the spec that are no parameters, for the nearest key.

    (None, []) for `torchattacks:NAME` in a list of attacks: whoever runs it checks it.
    """
    if name.startswith(TORCHATTACKS) and registry.kind == "attack":
        measures = path.partition(".")[0] == "attacks"
        return None, [] if measures else [
            Fault(f"{path}.name", f"{name[:80]} only measures; write it into `attacks`")
        ]
    if name not in registry:
        known = registry.names()
        listed = (
            [*known, *registered.ensembles.names(), f"{TORCHATTACKS}NAME"]
            if registry is registered.attacks
            else known
        )
        return None, [
            Fault(
                f"{path}.name",
                f"unknown {registry.kind} {name[:80]!r}; {suggestion(name, listed)}known: {', '.join(listed)}",
            )
        ]
    fn = registry.get(name).fn
    wanted = parameters(fn)
    faults: list[Fault] = []
    values: dict[str, Any] = {}
    for key, value in params.items():
        if key not in wanted:
            hint = (
                glued(key)
                or suggestion(key, [*wanted, *fields]).strip()
                or (f"it has: {', '.join(wanted)}" if wanted else "it has none")
            )
            faults.append(Fault(f"{path}.{key}", f"no such parameter of {registry.kind} {name!r}; {hint}"))
            continue
        value, wrong = _coerce(wanted[key], value, f"{path}.{key}")
        faults += wrong
        values[key] = value
    missing = [key for key, param in wanted.items() if param.default is Parameter.empty and key not in params]
    faults += [Fault(f"{path}.{key}", f"missing; {registry.kind} {name!r} needs it") for key in missing]
    return (None, faults) if faults else (Bound(name, fn, values), [])


def _coerce(param: Param, value: Any, path: str) -> tuple[Any, list[Fault]]:
    try:
        return TypeAdapter(strictly(param.annotation)).validate_python(value), []
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda item: _word_error_last(item["type"]))
        return None, [Fault(path, explain(first))]


def _word_error_last(kind: str) -> int:
    """Of a union's errors the one of the real value type says most; the one about null says least."""
    return 2 if kind == "none_required" else 1 if kind == "literal_error" else 0


def strictly(annotation: Any) -> Any:
    """`annotation` with float, int, bool and str replaced by Number, Int, Flag and Text, at any depth; unions read left to right."""
    if annotation in (float, int, bool, str):
        return _STRICT[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        parts = (strictly(args[0]), *args[1:])
        return Annotated[parts]
    inner = tuple(arg if arg is Ellipsis else strictly(arg) for arg in args)
    if origin in (Union, types.UnionType):
        values = tuple(part for part in inner if part is not types.NoneType)
        either = Annotated[Union[values], Field(union_mode="left_to_right")] if len(values) > 1 else values[0]  # noqa: UP007  (built at run time)
        return Union[either, None] if len(values) < len(inner) else either  # noqa: UP007
    return origin[inner] if inner else annotation
