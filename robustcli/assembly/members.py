"""The models that a vote joins with the configured one: its parameter `members`."""

from __future__ import annotations

from collections.abc import Callable

from robustcli import registry
from robustcli.config.schema import Config
from robustcli.config.spec import Spec


def members_of(config: Config) -> list[str]:
    """References of these models, of all votes of a configuration."""
    found: list[str] = []
    for spec in config.defences:
        found += _members(spec)
    return found


def with_members(spec: Spec, change: Callable[[str], str]) -> Spec:
    """The defence with `change` made to each of its references; itself where it has none."""
    members = _members(spec)
    if not members:
        return spec
    return Spec.of(spec.name, **{**spec.params, "members": [change(name) for name in members]})


def _members(spec: Spec) -> list[str]:
    members = spec.params.get("members")
    is_vote = spec.name in registry.defences and registry.defences.get(spec.name).facts.kind == "vote"
    return [str(name) for name in members] if is_vote and isinstance(members, list) else []
