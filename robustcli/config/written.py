"""The defaults of named methods, written out: a resolved configuration says every number it runs with."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from robustcli.config.bind import AnyRegistry, Registries
from robustcli.config.schema import Config, spec_fields
from robustcli.config.tree import matching
from robustcli.config.yaml_text import write_tree
from robustcli.registry import parameters

#: Path of a spec -> where its name is registered. Elements of lists are left out, and so are attacks: what is
#: given to them stands in their name in tables and in the identity of an evaluation.
_SPECS = {
    path: registry
    for path, (registry, _) in spec_fields().items()
    if registry != "attacks" and "*" not in path
}


def resolved_yaml(config: Config) -> str:
    """YAML of the whole config with the defaults of its methods. Loading it gives one that does the same."""
    return write_tree(written_out(config.model_dump(mode="json")))


def written_out(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a tree, with every parameter of its methods that has a default.

    A second call changes nothing.
    A name that is not registered (a reference, a method of a later version) stays as it is, and so does the
    name beside a user's own network.
    """
    registries, whole = Registries.discover(), dict(tree)
    for path, kind in _SPECS.items():
        whole = _changed(whole, path, getattr(registries, kind))
    return whole


def filled(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> the method whose default stands there, of all keys that `written_out` adds."""
    registries = Registries.discover()
    added: dict[str, str] = {}
    for path, kind in _SPECS.items():
        for _, spec in matching(tree, path):
            for key in _missing(spec, getattr(registries, kind)):
                added[".".join((*path, key))] = str(spec["name"])
    return added


def _changed(tree: dict[str, Any], path: tuple[str, ...], registry: AnyRegistry) -> dict[str, Any]:
    """`tree` with the spec at `path` completed."""
    if not path:
        return {**tree, **_missing(tree, registry)}
    inner = tree.get(path[0])
    if not isinstance(inner, Mapping):
        return tree
    return {**tree, path[0]: _changed(dict(inner), path[1:], registry)}


def _missing(spec: Any, registry: AnyRegistry) -> dict[str, Any]:
    """The parameters with a default that the spec does not state."""
    if not isinstance(spec, Mapping) or spec.get("plugin") is not None or spec.get("name") not in registry:
        return {}
    wanted = parameters(registry.get(spec["name"]).fn)
    return {
        key: _plain(own.default)
        for key, own in wanted.items()
        if key not in spec and own.default is not Parameter.empty
    }


def _plain(value: Any) -> Any:
    """A default as YAML holds it: a tuple is a list."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
