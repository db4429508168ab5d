"""timm's models, where the extra is installed."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

from torch import nn

from robustcli.errors import CheckpointError, ConfigError, ResourceError
from robustcli.models.backbone import Backbone
from robustcli.models.info import ModelInfo
from robustcli.registry import suggestion


def build_timm(spec: str, info: ModelInfo, *, download: bool, meta: bool) -> Backbone:
    """The network ``NAME`` or ``NAME@pretrained``, with its own mean and std.

    The data's normalisation stays when the network was made for another number of channels.

    Args:
        spec: the part after ``timm:``.
        info: classes and image shape.
        download: allow timm to fetch weights.
        meta: only the shape is wanted, no weights are read.

    Raises:
        ResourceError E-EXTRA: timm is not installed. ConfigError: unknown name (the nearest is named).
        CheckpointError: ``@pretrained`` without `download`.
    """
    timm, name, pretrained = _known(spec)
    if pretrained and not meta and not download:
        raise CheckpointError(
            f"the weights of timm:{name} would be downloaded",
            hint="pass --download to fetch them",
            code="E-WEIGHTS",
        )
    net: nn.Module = timm.create_model(
        name, pretrained=pretrained and not meta, num_classes=info.num_classes, in_chans=info.channels
    )
    defaults = getattr(net, "default_cfg", None) or {}
    mean, std = tuple(defaults.get("mean", info.mean)), tuple(defaults.get("std", info.std))
    if len(mean) == info.channels:
        info = replace(info, mean=mean, std=std)
    return Backbone(net, f"timm:{name}", {}, info)


def timm_classes(spec: str) -> int:
    """Number of classes of the pretrained weights of ``NAME@pretrained``."""
    timm, name, _ = _known(spec)
    return int(timm.get_pretrained_cfg(name).num_classes)


def _known(spec: str) -> tuple[ModuleType, str, bool]:
    """(timm, name, whether pretrained weights are asked for), each checked."""
    name, _, weights = spec.partition("@")
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ResourceError(
            "timm is not installed",
            where=f"timm:{name}",
            hint="pip install 'robustcli[timm]'",
            code="E-EXTRA",
        ) from error
    if weights not in {"", "pretrained"}:
        raise ConfigError(
            f"timm:{name} has no weights {weights!r}", hint="write timm:NAME or timm:NAME@pretrained"
        )
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}; {suggestion(name, timm.list_models())}".rstrip("; "))
    return timm, name, bool(weights)
