"""A network that a user's ``path/to/file.py:factory`` makes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robustcli.errors import UsageError
from robustcli.foreign import PLUGIN
from robustcli.models.architectures.blocks import seeded
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import Normalisation, NormalisedModel, parse_normalize
from robustcli.models.plugin import record_of, run_plugin, split_plugin, user_code
from robustcli.models.size import probe
from robustcli.registry import suggestion


def build_plugin(
    plugin: str, params: Mapping[str, Any], info: ModelInfo, *, seed: int, normalize: str | None = None
) -> NormalisedModel:
    """A user's ``file.py:factory`` for data of the shape `info`: runs the user's code.

    The module takes pixels in [0, 1] and normalises itself, or expects the normalisation that `normalize`
    names.
    Raises UsageError (E-PLUGIN, with file:line) when the code fails, ConfigError when its logits are not [B,
    K].
    """
    mean, std = _normalisation(normalize, info.channels)
    info = replace(info, mean=mean, std=std)
    with torch.device("cpu"):
        backbone = call_factory(plugin, num_classes=info.num_classes, params=params, seed=seed)
        arch = PLUGIN + plugin.rpartition(":")[2]
        model = NormalisedModel(backbone, mean, std, arch=arch, params=_stored(params), info=info)
    model.plugin = record_of(plugin)
    probe(model)
    return model


def check_factory(plugin: str) -> None:
    """Raises UsageError E-PLUGIN for a file without ``:factory``, naming those that the file defines."""
    path, name = split_plugin(plugin)
    if not name:
        _find(run_plugin(path), path, name)


def call_factory(plugin: str, *, num_classes: int | None, params: Mapping[str, Any], seed: int) -> nn.Module:
    """The module that ``file.py:factory`` makes.

    The factory may take `num_classes`, the keys of `params`, or nothing. Global generators follow `seed`
    while it runs and are put back afterwards. A module in place of a factory is returned as it is.

    Raises:
        UsageError E-PLUGIN: no such factory (the nearest is named), a parameter it does not take, an
        exception inside (with file:line), or a result that is no nn.Module.
    """
    path, name = split_plugin(plugin)
    with seeded(seed):
        factory = _find(run_plugin(path), path, name)
        if isinstance(factory, nn.Module):
            return factory
        arguments = _arguments(factory, plugin, num_classes, params)
        with user_code(path):
            net = factory(**arguments)
    if not isinstance(net, nn.Module):
        raise UsageError(
            f"{plugin} returned {type(net).__name__}, not an nn.Module",
            hint="return the network itself",
            code="E-PLUGIN",
        )
    return net


def _normalisation(normalize: str | None, channels: int) -> Normalisation:
    if normalize is None:  # pixels as they are
        return (0.0,) * channels, (1.0,) * channels
    return parse_normalize(normalize, channels)


def _stored(params: Mapping[str, Any]) -> dict[str, Any]:
    """A factory's parameters as they are stored: all but num_classes, which `ModelInfo` holds."""
    return {key: value for key, value in params.items() if key != "num_classes"}


def _find(module: ModuleType, path: Path, name: str) -> Any:
    """The callable `name` of the user's module. Raises UsageError with the nearest name."""
    factory = vars(module).get(name)
    if callable(factory):
        return factory
    defined = _callables(module)
    what = f"which factory of {path}? "
    if name:
        what = f"{path} has no factory {name!r}; {suggestion(name, defined)}"
    only = defined[0] if len(defined) == 1 else "FACTORY"
    raise UsageError(
        f"{what}it defines: {', '.join(defined) or 'none'}",
        hint=f"write {path}:{only}",
        code="E-PLUGIN",
    )


def _callables(module: ModuleType) -> list[str]:
    """Public functions and classes that the file itself defines."""
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }
    return [name for name, value in own.items() if callable(value) and not name.startswith("_")]


def _arguments(
    factory: Any, plugin: str, num_classes: int | None, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments for `factory`, checked against its signature before it runs."""
    try:
        signature = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a C function tells nothing: let it judge
        return dict(params)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    named = {name: p for name, p in signature.items() if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    arguments = _stored(params)
    if num_classes is not None and "num_classes" in named:
        arguments["num_classes"] = num_classes
    for key in arguments:
        if key not in named and not takes_all:
            known = ", ".join(named) or "none"
            raise UsageError(
                f"{plugin} takes no parameter {key!r}; {suggestion(key, list(named))}known: {known}",
                code="E-PLUGIN",
            )
    missing = [name for name, p in named.items() if p.default is p.empty and name not in arguments]
    if missing:
        raise UsageError(
            f"{plugin} needs {', '.join(missing)}",
            hint="give the parameters a default, or set them in the config's model section",
            code="E-PLUGIN",
        )
    return arguments
