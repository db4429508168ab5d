"""From a name and parameters to a network with its normalisation inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from robustcli.config.bind import check_spec
from robustcli.config.tree import config_error
from robustcli.errors import ConfigError, PolicyError, ResourceError, out_of_memory
from robustcli.models.architectures.blocks import seeded
from robustcli.models.backbone import Backbone
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel, parse_normalize
from robustcli.models.plugin import is_plugin
from robustcli.models.size import probe
from robustcli.models.zoos import split_zoo
from robustcli.registry import models, parameters


def build_model(
    name: str,
    params: Mapping[str, Any],
    info: ModelInfo,
    *,
    seed: int,
    normalize: str | None = None,
    download: bool = False,
    meta: bool = False,
    filled: bool = False,
) -> NormalisedModel:
    """A network by name, untrained, or pretrained where another library's weights are named.

    Args:
        name: a registered model, ``torchvision:NAME[@WEIGHTS]``, ``timm:NAME[@pretrained]`` or
            ``hf:DIR_OR_NAME``.
        params: what the YAML says beside the name.
        info: classes, image shape and normalisation; torchvision and timm put their own normalisation in its
            place.
        seed: in [0, 2**63); the initial weights are a function of it alone, and no global generator moves.
        normalize: ``imagenet`` or numbers, see `parse_normalize`; replaces the normalisation of `info`.
        download: allow other libraries to fetch weights.
        meta: build without memory for the weights, to count parameters and FLOPs of a plan.
        filled: the caller fills in all weights, so that ``hf:`` needs none.

    Returns:
        NormalisedModel in training mode, float32, on the CPU (or the meta device):
        pixels [B, C, H, W] in [0, 1] -> logits [B, K].

    Raises:
        ConfigError: unknown name or parameter, or the network cannot take such images. ResourceError: memory
        or an extra is missing. PolicyError: `name` is a Python file, which runs only as an explicit plugin.
    """
    if is_plugin(name):
        raise PolicyError(
            f"model.name {name!r} is Python code",
            hint="user code runs only when it is given as --plugin FILE.py:factory",
            code="E-PLUGIN",
        )
    zoo = split_zoo(name)[0]
    shape = meta or filled and zoo is not None and zoo.always
    make = partial(_make, name, params, info, normalize=normalize, download=download, meta=shape)
    with _memory_explained(name), seeded(seed):
        if meta:
            return _without_memory(make)
        with torch.device("cpu"):
            model = make()
    if not ours(model.arch):
        probe(model)
    return model


def ours(arch: str) -> bool:
    """Whether this is an architecture of this package, which needs no probe: a plugin may register names."""
    return arch in models and str(models.get(arch).fn.__module__).startswith("robustcli.")


def _without_memory(make: Callable[[], NormalisedModel]) -> NormalisedModel:
    """A network on the meta device, by way of the CPU where its builder computes with tensors (RegNet)."""
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:
        with torch.device("cpu"):
            return make().to("meta")


def _make(
    name: str,
    params: Mapping[str, Any],
    info: ModelInfo,
    *,
    normalize: str | None,
    download: bool,
    meta: bool,
) -> NormalisedModel:
    backbone = _backbone(name, params, info, download=download, meta=meta)
    info = backbone.info
    if normalize is not None:
        mean, std = parse_normalize(normalize, info.channels)
        info = replace(info, mean=mean, std=std)
    return NormalisedModel(
        backbone.net,
        info.mean,
        info.std,
        arch=backbone.arch,
        params=backbone.params,
        info=info,
        fixed_size=backbone.fixed_size,
    )


def _backbone(
    name: str, params: Mapping[str, Any], info: ModelInfo, *, download: bool, meta: bool
) -> Backbone:
    zoo, spec = split_zoo(name)
    if zoo is None or not spec:
        return _registered(name, params, info, meta=meta)
    if params:
        raise ConfigError(f"model.{next(iter(params))}: {zoo.name} models take no parameters")
    return zoo.build(spec, info, download=download, meta=meta)


def _registered(name: str, params: Mapping[str, Any], info: ModelInfo, *, meta: bool) -> Backbone:
    """A network of `robustcli.registry.models`; `params` are checked and completed."""
    spec, faults = check_spec(models, name, params, "model")
    if spec is None:
        raise config_error(faults)
    entry = models.get(name)
    # defaults are part of a checkpoint's fingerprint: a later version may change them
    bound = {key: param.default for key, param in parameters(entry.fn).items()} | spec.params
    if not meta:
        with suppress(NotImplementedError), torch.device("meta"):
            _check_memory(name, entry.fn(info, **bound))
    net = entry.fn(info, **bound)
    return Backbone(net, name, bound, info, bool(entry.facts.fixed_size))


def _check_memory(name: str, net: nn.Module) -> None:
    """ResourceError when the weights alone exceed this machine's memory.

    Without this check the system would kill the process, and nobody would be told why.
    """
    if not hasattr(os, "sysconf"):  # Windows: the allocator refuses by itself
        return
    need = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        what = f"the weights of {name} need {need / 1e9:.1f} GB, this machine has {have / 1e9:.1f} GB"
        raise ResourceError(what, hint="a smaller width or depth", code="E-OOM")


@contextmanager
def _memory_explained(name: str) -> Iterator[None]:
    """An allocation that fails is a ResourceError, not a traceback."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"model {name} does not fit into memory", hint="a smaller width or depth", code="E-OOM"
        ) from error
