"""A spec meets the function that it names.

The function's keyword-only arguments are the schema; pydantic converts the values.
"""

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
#: The names of that package's attacks begin so.
#: They are checked when a run starts, so that a config loads without the package.
TORCHATTACKS = "torchattacks:"
_STRICT: dict[Any, Any] = {float: Number, int: Int, bool: Flag, str: Text}
#: Of a union's errors the one about null says least and the one about words little more. Others are 0.
_VAGUENESS = {"literal_error": 1, "none_required": 2}


@dataclass(frozen=True)
class Bound:
    """A registered function and its checked keyword arguments: `bound.fn(x, **bound.params)`."""

    name: str
    fn: Callable[..., Any]
    params: dict[str, Any]


@dataclass(frozen=True)
class Registries:
    """The registries in which the names of a config are looked up."""

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
    defences: AnyRegistry

    @classmethod
    def discover(cls) -> Registries:
        """The package's own registries, filled. This imports torch."""
        return cls(*(getattr(registered, name) for name in cls.__dataclass_fields__))


def bind_spec(registry: AnyRegistry, spec: Spec, path: str) -> Bound:
    """`spec` bound to its entry of `registry`; messages name it by `path`.

    Raises ConfigError with every mistake of the spec.
    """
    bound, faults = check_spec(registry, spec.name, spec.params, path, list(type(spec).model_fields))
    if bound is not None:
        return bound
    if not faults:
        what = f"{spec.name[:80]} has no function here to bind; evaluation.outside makes the call"
        faults = [Fault(f"{path}.name", what)]
    raise config_error(faults)


def check_spec(
    registry: AnyRegistry, name: str, params: Mapping[str, Any], path: str, fields: Sequence[str] = ("name",)
) -> tuple[Bound | None, list[Fault]]:
    """(bound, []) for a spec without mistakes, else (None, every mistake).

    A `torchattacks:NAME` in the list `attacks` gives (None, []): whoever runs it checks it.

    Args:
        registry: where `name` is looked up.
        name: of the function.
        params: its keyword arguments, as YAML gave them.
        path: the spec's dotted path, for messages.
        fields: keys of the spec that are no parameters; a misspelt key may mean one of them.
    """
    if name.startswith(TORCHATTACKS) and registry.kind == "attack":
        return None, _outside_faults(name, path)
    if name not in registry:
        return None, [_unknown_name(registry, name, path)]
    fn = registry.get(name).fn
    wanted = parameters(fn)
    faults: list[Fault] = []
    values: dict[str, Any] = {}
    for key, value in params.items():
        if key not in wanted:
            hint = _key_hint(key, wanted, fields)
            faults.append(Fault(f"{path}.{key}", f"no such parameter of {registry.kind} {name!r}; {hint}"))
            continue
        try:
            values[key] = TypeAdapter(strictly(wanted[key].annotation)).validate_python(value)
        except ValidationError as error:
            faults.append(Fault(f"{path}.{key}", _most_telling(error)))
    for key, param in wanted.items():
        if param.default is Parameter.empty and key not in params:
            faults.append(Fault(f"{path}.{key}", f"missing; {registry.kind} {name!r} needs it"))
    if faults:
        return None, faults
    return Bound(name, fn, values), []


def _outside_faults(name: str, path: str) -> list[Fault]:
    """Another library's attack stands in the list `attacks` only: it cannot train a model."""
    if path.partition(".")[0] == "attacks":
        return []
    return [Fault(f"{path}.name", f"{name[:80]} only measures; write it into `attacks`")]


def _unknown_name(registry: AnyRegistry, name: str, path: str) -> Fault:
    known = registry.names()
    if registry is registered.attacks:
        known += [*registered.ensembles.names(), f"{TORCHATTACKS}NAME"]
    close = suggestion(name, known)
    return Fault(f"{path}.name", f"unknown {registry.kind} {name[:80]!r}; {close}known: {', '.join(known)}")


def _key_hint(key: str, wanted: Mapping[str, Param], fields: Sequence[str]) -> str:
    """What somebody meant who wrote `key`, else the parameters that there are."""
    close = glued(key) or suggestion(key, [*wanted, *fields]).strip()
    if close:
        return close
    if not wanted:
        return "it has none"
    return f"it has: {', '.join(wanted)}"


def _most_telling(error: ValidationError) -> str:
    """The message of the one error that says most: a union has an error for each of its types."""
    errors = error.errors(include_url=False)
    return explain(min(errors, key=lambda item: _VAGUENESS.get(item["type"], 0)))


def strictly(annotation: Any) -> Any:
    """`annotation` with float, int, bool and str replaced by Number, Int, Flag and Text, at any depth.

    A union tries its types from left to right.
    """
    if annotation in (float, int, bool, str):
        return _STRICT[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        parts = (strictly(args[0]), *args[1:])
        return Annotated[parts]
    inner = tuple(strictly(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return _left_to_right(inner)
    if not inner:
        return annotation
    return origin[inner]


def _left_to_right(parts: tuple[Any, ...]) -> Any:
    """The union of `parts`, tried in order; null is tried last."""
    values = tuple(part for part in parts if part is not types.NoneType)
    union = values[0]
    if len(values) > 1:
        union = Annotated[Union[values], Field(union_mode="left_to_right")]  # noqa: UP007 - built at run time
    if len(values) == len(parts):
        return union
    return Union[union, None]  # noqa: UP007 - built at run time
