"""Registered defences as modules, built for images of one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustcli import registry
from robustcli.config.bind import check_spec
from robustcli.config.tree import config_error
from robustcli.models.architectures.blocks import seeded
from robustcli.models.guarded import Defence
from robustcli.models.size import as_json
from robustcli.registry import parameters


def make_defence(
    label: str,
    name: str,
    params: Mapping[str, Any],
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    seed: int = 0,
    path: str = "defences",
) -> Defence:
    """One defence, not fitted.

    Args:
        label: its name in tables.
        name, params: of the registered function; what is missing has its default.
        shape: (C, H, W) of the images.
        num_classes: K.
        seed: of the initial weights of a network of its own.
        path: where the parameters were written, for messages.

    Raises ConfigError for an unknown name or parameter.
    """
    bound, faults = check_spec(registry.defences, name, params, path)
    if bound is None:
        raise config_error(faults)
    given = {key: param.default for key, param in parameters(bound.fn).items()} | bound.params
    with seeded(seed):
        module = bound.fn(**given)
        if hasattr(module, "shaped"):
            module.shaped(shape, num_classes)
    return Defence(label, name, as_json(given), module)
