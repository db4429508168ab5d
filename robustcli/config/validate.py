"""What is wrong with a merged config: the schema's errors, names and parameters of specs, code where only data may be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from robustcli.config.bind import Registries, check_spec
from robustcli.config.explain import explain, plain_path, unknown_key
from robustcli.config.schema import known_keys, spec_fields
from robustcli.config.spec import ModelConfig, ParamErrors, Spec, is_reference, names_code
from robustcli.config.tree import Fault, Node, Path_, locate
from robustcli.registry import Entry, ensembles, suggestion


def schema_faults(error: ValidationError) -> list[Fault]:
    """One fault per mistake that pydantic found."""
    faults = []
    for item in error.errors(include_url=False):
        path = plain_path(item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ParamErrors):
            faults += [Fault(".".join((*path, key)), what) for key, what in cause.found]
        elif item["type"] == "extra_forbidden":
            faults.append(Fault(".".join(path), unknown_key(path, known_keys())))
        else:
            faults.append(Fault(".".join(path), explain(item)))
    return faults


def code_faults(tree: Node) -> list[Fault]:
    """User code is named on the command line only: never in a file that may come from someone else, nor in the environment."""
    node, depth = locate(tree, ("model", "name"))
    written_in_data = node.origin.startswith("environment ") or re.search(r":\d+$", node.origin) is not None
    if isinstance(node.value, str) and names_code(node.value) and written_in_data:
        return [
            Fault(
                "model.name",
                "a config never names code; use --model FILE.py:FACTORY or --plugin FILE on the command line",
                node.origin,
            )
        ]
    return []


def bind_faults(data: Any, registries: Registries) -> list[Fault]:
    """Every spec against its registry. Specs whose shape is wrong are left to the schema's message."""
    faults: list[Fault] = []
    for path, registry, cls, raw in _specs(data):
        name, params = (
            raw.get("name"),
            {key: value for key, value in raw.items() if key not in cls.model_fields},
        )
        if not isinstance(name, str) or not name:
            continue
        if issubclass(cls, ModelConfig) and is_reference(name):
            faults += [
                Fault(f"model.{key}", "a run knows its model; no parameters can be set")
                for key in params
                if name.startswith("run:")
            ]
            continue
        entries = getattr(registries, registry)
        if (
            path[0] == "attacks" and name in ensembles
        ):  # a list of attacks may hold a whole ensemble, which is data
            entries = ensembles
        faults += check_spec(entries, name, params, ".".join(path), list(cls.model_fields))[1]
        faults += _norm_faults(entries.get(name), data, ".".join(path)) if name in entries else []
    return faults + _dataset_faults(data, registries)


def _norm_faults(entry: Entry[Any], data: Any, path: str) -> list[Fault]:
    """An attack that does not know the ball's norm."""
    ball = data.get("ball")
    norm, norms = ball.get("norm") if isinstance(ball, dict) else None, getattr(entry.facts, "norms", None)
    if norms is None or norm not in ("linf", "l2", "l1") or norm in norms:
        return []
    return [
        Fault(f"{path}.name", f"attack {entry.name!r} works for {', '.join(norms)}, and ball.norm is {norm}")
    ]


def _dataset_faults(data: Any, registries: Registries) -> list[Fault]:
    section = data.get("data")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str) or not name:
        return []
    takes_path = {entry.name: bool(entry.facts.path) for entry in registries.datasets}
    first, colon, _ = name.partition(":")
    if first in takes_path and (takes_path[first] or not colon):
        return []
    known = [f"{item}:PATH" if path else item for item, path in takes_path.items()]
    return [
        Fault(
            "data.name",
            f"unknown data set {name[:80]!r}; {suggestion(first[:80], known)}known: {', '.join(known)}",
        )
    ]


def _specs(data: Any) -> Iterator[tuple[Path_, str, type[Spec], dict[str, Any]]]:
    """(path, registry, class, raw mapping) of every spec present in plain data."""
    for pattern, (registry, cls) in spec_fields().items():
        for path, value in _matching(data, pattern):
            raw = {"name": value} if isinstance(value, str) else value
            if isinstance(raw, dict):
                yield path, registry, cls, raw


def _matching(data: Any, pattern: Path_, at: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if not pattern:
        yield at, data
    elif pattern[0] == "*" and isinstance(data, list):
        for index, item in enumerate(data):
            yield from _matching(item, pattern[1:], (*at, str(index)))
    elif isinstance(data, dict) and pattern[0] in data:
        yield from _matching(data[pattern[0]], pattern[1:], (*at, pattern[0]))
