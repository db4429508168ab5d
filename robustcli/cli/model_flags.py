"""--model, --weights and --plugin as settings of the configuration: what is recorded is what runs.

A user's code is named by the command line alone. The configuration records its factory, file name and hash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.errors import ConfigError, UsageError
from robustcli.foreign import PLUGIN

if TYPE_CHECKING:
    from robustcli.config.load import Loaded
    from robustcli.config.overlay import Override
    from robustcli.config.spec import ModelConfig, PluginConfig

NAME = "model.name"
MODEL_KEYS = ("model", NAME)  # keys that name a model
DATA_KEYS = ("data", "data.name")  # keys that name a data set
_KEPT = (
    "weights",
    "normalize",
    "weights_kind",
)  # what a configuration says of the network that a user's code replaces


def as_meant(item: Override, plugin: str | None) -> Override:
    """A setting with what a bare path in the place of a model or of a data set obviously means.

    With a user's code the weight file of a checkpoint is a bare weight file.
    """
    from robustcli import registry
    from robustcli.models.meant import is_own_file, meant_data, meant_model

    if item.key in MODEL_KEYS and not (plugin is not None and is_own_file(Path(item.value))):
        return replace(item, value=meant_model(item.value))
    if item.key in DATA_KEYS:
        return replace(item, value=meant_data(item.value, registry.datasets.names()))
    return item


def user_code(flag: str | None, overrides: Sequence[Override]) -> str | None:
    """FILE.py:factory of `--plugin`, or of a model that names code; None for neither.

    Raises UsageError: both are given, or the factory is missing.
    """
    from robustcli.config.spec import names_code

    named = [item.value for item in overrides if item.key in MODEL_KEYS and names_code(item.value)]
    if flag is not None and named:
        raise UsageError(
            f"two networks: {named[-1]} and --plugin {flag}", hint="drop one of them", code="E-MODEL"
        )
    given = flag or next(reversed(named), None)
    if given is not None:
        from robustcli.models.factory import check_factory

        check_factory(given)
    return given


def with_user_code(
    given: str, overrides: Sequence[Override], read: Callable[[list[Override]], Loaded]
) -> list[Override]:
    """`overrides` with the record of the user's code, which takes the place of a configured network.

    A reference to a run or to weights stays: the user's code then makes the network for them. One that a file
    names goes where the command line names weights: those are the code's. A record that the configuration
    brings along stays too, and must be that of this code.

    Args:
        given: FILE.py:factory.
        read: overrides -> the configuration, without a look at registries.
    """
    from robustcli.config.overlay import Override
    from robustcli.config.spec import is_reference
    from robustcli.models.plugin import record_of

    said = [item for item in overrides if not (item.key in MODEL_KEYS and item.value == given)]
    before, record = read(said).config.model, record_of(given)
    if before.plugin is not None:
        check_record(before.plugin, record)
        return said
    recorded = Override("model.plugin", json.dumps(record.model_dump()), "--plugin")
    given_weights = any(item.key == "model.weights" for item in said)
    if before.name.startswith(PLUGIN) or (_brings_weights(before) and not given_weights):
        return [*said, recorded]
    named = [item.value for item in said if item.key in MODEL_KEYS]
    if named and not is_reference(named[-1]):
        raise UsageError(
            f"two networks: --model {named[-1]} and {given}", hint="drop one of them", code="E-MODEL"
        )
    kept = [
        Override(f"model.{key}", str(value), "--plugin") for key in _KEPT if (value := getattr(before, key))
    ]
    return [Override(NAME, PLUGIN + record.factory, "--plugin"), *kept, *said, recorded]


def check_record(recorded: PluginConfig, given: PluginConfig) -> None:
    """Raises UsageError E-PLUGIN unless the code that is given is the one that was recorded."""
    if recorded.same_code(given):
        return
    raise UsageError(
        f"the configuration was written for {recorded.label}, and --plugin is {given.label}",
        hint="give the file as it was then, or take the new one with model.plugin=null",
        code="E-PLUGIN",
    )


def require_user_code(model: ModelConfig) -> None:
    """Raises UsageError E-PLUGIN when the model needs a user's code and none was given."""
    if model.plugin is not None:
        raise UsageError(
            f"the model is made by {model.plugin.label}, and a configuration never runs code",
            hint=f"add --plugin {model.plugin.spec}",
            code="E-PLUGIN",
        )
    if model.name.startswith(PLUGIN):
        factory = model.name.removeprefix(PLUGIN)
        raise UsageError(
            f"the model is made by a user's {factory}, and a configuration never runs code",
            hint=f"add --plugin FILE.py:{factory}",
            code="E-PLUGIN",
        )


def require_model(loaded: Loaded) -> None:
    """Raises ConfigError when nobody says which model is to be measured."""
    if loaded.origins.get(NAME) == "default":
        raise ConfigError(
            "no model to measure",
            hint="say which: --model run:runs/train/latest, FILE.safetensors or FILE.py:factory",
            code="E-MODEL",
        )


def _brings_weights(model: ModelConfig) -> bool:
    """Whether the reference says which weights are meant, not which network."""
    from robustcli.config.spec import GUARD
    from robustcli.models.references import WEIGHT_FILES

    return model.name.startswith(("run:", GUARD)) or model.name.lower().endswith(WEIGHT_FILES)
