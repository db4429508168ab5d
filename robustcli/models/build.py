"""From a name and parameters to a network with its normalisation inside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from robustcli.config.bind import check_spec
from robustcli.config.tree import config_error
from robustcli.errors import ConfigError, PolicyError, ResourceError, out_of_memory
from robustcli.models.blocks import seeded
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel, parse_normalize
from robustcli.models.plugin import call_factory, factory_params, is_plugin, run_plugin, split_plugin
from robustcli.models.size import probe
from robustcli.models.timm_zoo import build_timm
from robustcli.models.torchvision_zoo import build_torchvision, one_size
from robustcli.registry import models, parameters

PLUGIN = (
    "plugin:"  # arch of a user's factory: "plugin:factory"; the file itself is never taken from stored data
)


def build_model(
    name: str,
    params: Mapping[str, Any],
    info: ModelInfo,
    *,
    seed: int,
    plugin: str | None = None,
    normalize: str | None = None,
    download: bool = False,
    meta: bool = False,
) -> NormalisedModel:
    """An untrained (or, with ``torchvision:NAME@WEIGHTS``, a pretrained) network: pixels [B, C, H, W] in [0, 1] -> logits [B, K].

    Args:
        name: a registered model, ``torchvision:NAME[@WEIGHTS]`` or ``timm:NAME[@pretrained]``.
        params: what the YAML says beside the name.
        info: classes, image shape and normalisation; torchvision and timm put their own normalisation in its place.
        seed: in [0, 2**63); the initial weights are a function of it alone, and no global generator moves.
        plugin: given by the user on the command line. ``file.py:factory`` replaces `name`; its module takes pixels in [0, 1],
            unless `normalize` says what it expects. ``file.py`` is run first: it may register `name`.
        normalize: ``imagenet`` or numbers, see `parse_normalize`; replaces the normalisation of `info`.
        download: allow torchvision and timm to fetch weights.
        meta: build without memory for the weights, to count parameters and FLOPs of a plan.

    Returns:
        NormalisedModel in training mode, float32, on the CPU (or the meta device).

    Raises:
        ConfigError: unknown name or parameter, or the network cannot take such images. ResourceError: memory or an extra is
        missing. PolicyError: `name` is a Python file (code runs through `plugin` only).
    """
    if plugin is not None and split_plugin(plugin)[1]:
        return build_plugin(plugin, params, info, seed=seed, normalize=normalize)
    if plugin is not None:
        run_plugin(split_plugin(plugin)[0])
    if is_plugin(name):
        raise PolicyError(
            f"model.name {name!r} is Python code",
            hint="user code runs only when it is given as --plugin FILE.py:factory",
            code="E-PLUGIN",
        )
    with _construction(name), seeded(seed):
        make = partial(_make, name, params, info, normalize=normalize, download=download, meta=meta)
        try:
            with torch.device("meta" if meta else "cpu"):
                model = make()
        except (
            NotImplementedError
        ):  # an outside builder that computes with tensors (RegNet's widths) needs real ones
            if not meta:
                raise
            with torch.device("cpu"):
                model = make().to("meta")
    if model.arch not in models and not meta:
        probe(model, model.arch, seed)
    return model


def build_plugin(
    plugin: str, params: Mapping[str, Any], info: ModelInfo, *, seed: int, normalize: str | None = None
) -> NormalisedModel:
    """A user's ``file.py:factory`` for data of the shape `info`: runs the user's code.

    The module takes pixels in [0, 1] and normalises itself, or expects the normalisation that `normalize` names.
    Raises UsageError (E-PLUGIN, with file:line) when the code fails, ConfigError when its logits are not [B, K].
    """
    mean, std = (
        parse_normalize(normalize, info.channels)
        if normalize is not None
        else ((0.0,) * info.channels, (1.0,) * info.channels)
    )
    info = replace(info, mean=mean, std=std)
    with torch.device("cpu"):
        backbone = call_factory(plugin, num_classes=info.num_classes, params=params, seed=seed)
        arch = PLUGIN + plugin.rpartition(":")[2]
        model = NormalisedModel(backbone, mean, std, arch=arch, params=factory_params(params), info=info)
    probe(model, arch, seed)
    return model


def _make(
    name: str,
    params: Mapping[str, Any],
    info: ModelInfo,
    *,
    normalize: str | None,
    download: bool,
    meta: bool,
) -> NormalisedModel:
    backbone, arch, bound, info, fixed = _backbone(name, params, info, download=download, meta=meta)
    if normalize is not None:
        mean, std = parse_normalize(normalize, info.channels)
        info = replace(info, mean=mean, std=std)
    return NormalisedModel(
        backbone, info.mean, info.std, arch=arch, params=bound, info=info, fixed_size=fixed
    )


def _backbone(
    name: str, params: Mapping[str, Any], info: ModelInfo, *, download: bool, meta: bool
) -> tuple[nn.Module, str, dict[str, Any], ModelInfo, bool]:
    """(backbone, arch, all parameters, info with the normalisation it needs, whether only info.size fits)."""
    prefix, _, rest = name.partition(":")
    if rest and prefix in {"torchvision", "timm"}:
        if params:
            raise ConfigError(f"model.{next(iter(params))}: {prefix} models take no parameters")
        build = build_torchvision if prefix == "torchvision" else build_timm
        backbone, info = build(rest, info, download=download, meta=meta)
        return (
            backbone,
            f"{prefix}:{rest.partition('@')[0]}",
            {},
            info,
            prefix == "torchvision" and one_size(rest),
        )
    found, faults = check_spec(models, name, params, "model")
    if found is None:
        raise config_error(faults)
    entry = models.get(name)
    # defaults are part of a checkpoint's fingerprint: a later version may change them
    bound = {key: param.default for key, param in parameters(entry.fn).items()} | found.params
    if not meta:
        with suppress(NotImplementedError), torch.device("meta"):
            _check_memory(name, entry.fn(info, **bound))
    return entry.fn(info, **bound), name, bound, info, bool(entry.facts.fixed_size)


def _check_memory(name: str, net: nn.Module) -> None:
    """ResourceError when the weights alone exceed this machine's memory: asking for them would get the process killed, not an error."""
    if not hasattr(os, "sysconf"):  # Windows: the allocator refuses by itself
        return
    need = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        what = f"the weights of {name} need {need / 1e9:.1f} GB, this machine has {have / 1e9:.1f} GB"
        raise ResourceError(what, hint="a smaller width or depth", code="E-OOM")


@contextmanager
def _construction(name: str) -> Iterator[None]:
    """An allocation that fails is a ResourceError, not a traceback."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"model {name} does not fit into memory", hint="a smaller width or depth", code="E-OOM"
        ) from error
