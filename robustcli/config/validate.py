"""What is wrong with a merged config: values, names and parameters of specs, code where only data may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from robustcli.config.bind import Registries, check_spec
from robustcli.config.explain import explain, plain_path, unknown_key
from robustcli.config.number import parse_number
from robustcli.config.schema import known_keys, spec_fields
from robustcli.config.sections import LARGEST, wrong_radius
from robustcli.config.spec import COMMAND, GUARD, ModelConfig, ParamErrors, Spec, is_reference, names_code
from robustcli.config.tree import Fault, KeyPath, Node, locate, matching
from robustcli.registry import Entry, attacks, ensembles, parameters, suggestion

#: Sections about training alone.
TRAINING = ("objective", "regularizers", "adversary", "train")


def schema_faults(error: ValidationError, data: Any, registries: Registries | None) -> list[Fault]:
    """One fault per mistake that pydantic found.

    data: the whole config as plain data. registries: None where specs are not looked up.
    """
    faults = []
    parameters_too: dict[KeyPath, list[str]] = {}
    for item in error.errors(include_url=False):
        path = plain_path(item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ParamErrors):
            faults += [Fault(".".join((*path, key)), what) for key, what in cause.mistakes]
        elif item["type"] == "extra_forbidden":
            known = known_keys()
            if len(path) == 1 and registries is not None:
                parameters_too = parameters_too or {**known, **_parameters(data, registries)}
                known = parameters_too
            faults.append(Fault(".".join(path), unknown_key(path, known)))
        else:
            faults.append(Fault(".".join(path), explain(item)))
    return faults


def _parameters(data: Any, registries: Registries) -> dict[KeyPath, list[str]]:
    """Path of every spec that the config has -> its keys and the parameters of the method that it names."""
    known = {}
    for path, registry, cls, raw in _specs(data):
        entries, name = getattr(registries, registry), raw.get("name")
        if path[0] != "attacks" and isinstance(name, str) and name in entries:
            known[path] = [*cls.model_fields, *parameters(entries.get(name).fn)]
    return known


def code_faults(tree: Node) -> list[Fault]:
    """The fault of a file or variable that names user code: it may come from someone else."""
    node, _ = locate(tree, ("model", "name"))
    written_in_data = node.origin.startswith("environment ") or re.search(r":\d+$", node.origin) is not None
    if not isinstance(node.value, str) or not written_in_data:
        return []
    if node.value.startswith(COMMAND):
        what = "a config never names a program; use --model 'command:PROGRAM ARGS' on the command line"
        return [Fault("model.name", what, node.origin)]
    if not names_code(node.value):
        return []
    what = "a config never names code; use --plugin FILE.py:FACTORY on the command line"
    return [Fault("model.name", what, node.origin)]


def bind_faults(data: Any, registries: Registries) -> list[Fault]:
    """Every spec against its registry. A spec of the wrong shape is left to the schema's message."""
    faults: list[Fault] = []
    for path, registry, cls, raw in _specs(data):
        name = raw.get("name")
        if not isinstance(name, str) or not name:
            continue
        params = {key: value for key, value in raw.items() if key not in cls.model_fields}
        if issubclass(cls, ModelConfig) and is_reference(name):
            faults += _reference_faults(name, params)
            continue
        entries = getattr(registries, registry)
        if path[0] == "attacks" and name in ensembles:
            entries = ensembles  # the list `attacks` may hold an ensemble, which is data
        faults += check_spec(entries, name, params, ".".join(path), list(cls.model_fields))[1]
        if path[0] in TRAINING and _measures_a_run(data):
            continue
        if name in entries:
            faults += _norm_faults(entries.kind, entries.get(name), data, ".".join(path))
        if isinstance(data.get("ball"), list):
            faults += _union_faults(entries, name, params, ".".join(path))
    return faults + _guard_faults(data) + _radii_faults(data) + _dataset_faults(data, registries)


def _reference_faults(name: str, params: Iterable[str]) -> list[Fault]:
    """The parameters beside `run:PATH` and `guard:DIR`; other references take parameters."""
    kind = {"run:": "run", GUARD: "guard"}.get(name.partition(":")[0] + ":")
    if kind is None:
        return []
    return [Fault(f"model.{key}", f"a {kind} knows its model; no parameters can be set") for key in params]


def _guard_faults(data: Any) -> list[Fault]:
    """The fault of defences around a guard, which has its own."""
    name = _value(data, "model", "name")
    if not (isinstance(name, str) and name.startswith(GUARD) and data.get("defences")):
        return []
    return [Fault("defences", f"{name[:80]} has its own defences; drop these")]


def _radii_faults(data: Any) -> list[Fault]:
    """The faults of certified radii that no image can need: somebody meant 2/255 and wrote 2."""
    norm, radii = _value(data, "ball", "norm") or "linf", _value(data, "certify", "radii")
    if not isinstance(norm, str) or norm not in LARGEST or radii is None:
        return []
    faults = []
    for radius in radii if isinstance(radii, list) else str(radii).split(","):
        with suppress(ValueError):  # what is no number is a fault of the schema
            value = parse_number(radius)
            if what := wrong_radius("radius", value, norm):
                faults.append(Fault("certify.radii", what))
    return faults


def _measures_a_run(data: Any) -> bool:
    """Whether the model is a run's: its configuration says how it was trained, whatever ball it is in now.

    One that is trained further is looked at when its training step is made.
    """
    name = _value(data, "model", "name")
    return isinstance(name, str) and name.startswith("run:")


def _norm_faults(kind: str, entry: Entry[Any], data: Any, path: str) -> list[Fault]:
    """The fault of an attack or an objective that does not know the ball's norm."""
    mistakes = [norm_mistake(kind, entry, norm) for norm in _norms(data)]
    return [Fault(f"{path}.name", what) for what in mistakes if what]


def _norms(data: Any) -> list[str]:
    """The known norms of the balls in plain data."""
    balls = data.get("ball")
    listed = balls if isinstance(balls, list) else [balls]
    norms = [ball.get("norm") for ball in listed if isinstance(ball, dict)]
    return [norm for norm in norms if isinstance(norm, str) and norm in LARGEST]


def _union_faults(entries: Any, name: str, params: Mapping[str, Any], path: str) -> list[Fault]:
    """The faults of an attack that does not go with several balls; see `union_mistake`."""
    known = name in entries and entries.kind == "attack"
    what = union_mistake(entries.get(name) if known else None, params)
    return [Fault(f"{path}.{key}", text) for key, text in what.items()]


def union_mistake(entry: Entry[Any] | None, params: Mapping[str, Any]) -> dict[str, str]:
    """Key of an attack -> why it does not go with several balls; {} where it does.

    A step size is a length under one norm. An unbounded attack is a threat of its own.
    """
    if params.get("step_size") is not None:
        told = "several balls have no step size in common; leave it null: it follows each radius"
        return {"step_size": told}
    if entry is not None and getattr(entry.facts, "kind", None) == "unbounded":
        return {"name": f"{entry.name} has no ball; measure it without a list of balls"}
    return {}


def norm_mistake(kind: str, entry: Entry[Any], norm: str) -> str:
    """Why a registered thing does not go with a ball of this norm; "" where it does, or states no norms."""
    norms = getattr(entry.facts, "norms", None)
    if norms is None or norm in norms:
        return ""
    what = f"{kind} {entry.name!r} works for {', '.join(norms)}, and ball.norm is {norm}"
    if kind == "objective":
        return what
    return f"{what}; {norm} is searched by {', '.join(searching(norm))}"


def searching(norm: str) -> list[str]:
    """Registered attacks inside a ball of this norm that follow gradients, the longest search first."""
    able = [entry for entry in attacks if norm in entry.facts.norms and entry.facts.needs == "gradient"]
    able = [entry for entry in able if entry.facts.kind != "unbounded" and not entry.facts.guarded]

    def passes(entry: Entry[Any]) -> int:
        given = {name: parameter.default for name, parameter in parameters(entry.fn).items()}
        return int(entry.facts.passes(given, 10, norm))

    return [entry.name for entry in sorted(able, key=passes, reverse=True)]


def _dataset_faults(data: Any, registries: Registries) -> list[Fault]:
    """The fault of a data set that is not registered, or that takes no path and has one."""
    name = _value(data, "data", "name")
    if not isinstance(name, str) or not name:
        return []
    takes_path = {entry.name: bool(entry.facts.path) for entry in registries.datasets}
    first, colon, path = name.partition(":")
    if takes_path.get(first) and not path:
        return [Fault("data.name", f"{first} needs a path; write {first}:PATH")]
    if first in takes_path and (takes_path[first] or not colon):
        return []
    known = [f"{item}:PATH" if path else item for item, path in takes_path.items()]
    close = suggestion(first[:80], known)
    return [Fault("data.name", f"unknown data set {name[:80]!r}; {close}known: {', '.join(known)}")]


def _value(data: Any, section: str, key: str) -> Any:
    """The value of `section.key` in plain data, or None where the section is no mapping."""
    values = data.get(section)
    if not isinstance(values, dict):
        return None
    return values.get(key)


def _specs(data: Any) -> Iterator[tuple[KeyPath, str, type[Spec], dict[str, Any]]]:
    """(path, registry, class, raw mapping) of every spec present in plain data."""
    for pattern, (registry, cls) in spec_fields().items():
        for path, raw in matching(data, pattern):
            if isinstance(raw, str):
                raw = {"name": raw}
            if isinstance(raw, dict):
                yield path, registry, cls, raw
