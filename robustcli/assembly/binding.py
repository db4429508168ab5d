"""A named method and its parameters, ready to be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustcli.config.bind import AnyRegistry, bind_spec
from robustcli.config.spec import Spec


def bound(kind: AnyRegistry, spec: Spec, path: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The registered function of a spec and its converted parameters. Raises ConfigError."""
    method = bind_spec(kind, spec, path)
    return method.fn, dict(method.params)
