"""timm's models, where the extra is installed."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

from torch import nn

from robustcli.errors import CheckpointError, ConfigError, ResourceError
from robustcli.models.info import ModelInfo
from robustcli.registry import suggestion


def build_timm(
    spec: str, info: ModelInfo, *, download: bool, meta: bool = False
) -> tuple[nn.Module, ModelInfo]:
    """(network on normalised images, `info` with the network's own mean and std) for ``NAME`` or ``NAME@pretrained``.

    The data's own normalisation stays when the network was made for another number of channels.

    `meta`: only the shape is wanted, no weights are read.

    Raises:
        ResourceError E-EXTRA: timm is not installed. ConfigError: unknown name (the nearest is named).
        CheckpointError: ``@pretrained`` without `download`.
    """
    timm, name, wanted = _known(spec)
    if wanted and not meta and not download:
        raise CheckpointError(
            f"the weights of timm:{name} would be downloaded",
            hint="pass --download to fetch them",
            code="E-WEIGHTS",
        )
    net: nn.Module = timm.create_model(
        name, pretrained=bool(wanted) and not meta, num_classes=info.num_classes, in_chans=info.channels
    )
    defaults = getattr(net, "default_cfg", None) or {}
    mean, std = tuple(defaults.get("mean", info.mean)), tuple(defaults.get("std", info.std))
    return net, replace(info, mean=mean, std=std) if len(mean) == info.channels else info


def timm_classes(spec: str) -> int:
    """Number of classes of the pretrained weights of ``NAME@pretrained``."""
    timm, name, _ = _known(spec)
    return int(timm.get_pretrained_cfg(name).num_classes)


def _known(spec: str) -> tuple[ModuleType, str, str]:
    """(timm, name, "" or "pretrained"), each checked."""
    name, _, wanted = spec.partition("@")
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ResourceError(
            "timm is not installed",
            where=f"timm:{name}",
            hint="pip install 'robustcli[timm]'",
            code="E-EXTRA",
        ) from error
    if wanted not in {"", "pretrained"}:
        raise ConfigError(
            f"timm:{name} has no weights {wanted!r}", hint="write timm:NAME or timm:NAME@pretrained"
        )
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}; {suggestion(name, timm.list_models())}".rstrip("; "))
    return timm, name, wanted
