"""timm's models, where the extra is installed; pretrained ones from the caches of Hugging Face and torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robustcli.errors import CheckpointError, ConfigError, ResourceError
from robustcli.models.backbone import Backbone
from robustcli.models.complaint import first_line
from robustcli.models.info import ModelInfo
from robustcli.models.torchvision_weights import weights_only
from robustcli.registry import suggestion

_SAFE = "model.safetensors"


def build_timm(spec: str, info: ModelInfo, *, download: bool, meta: bool) -> Backbone:
    """The network ``NAME`` or ``NAME@pretrained``, with its own mean and std.

    The data's normalisation stays when the network was made for another number of channels. A network that
    takes one image size is built for that of `info`.

    Args:
        spec: the part after ``timm:``.
        info: classes and image shape.
        download: allow timm to fetch weights that are in no cache.
        meta: only the shape is wanted, no weights are read.

    Raises:
        ResourceError: timm is not installed, no network. ConfigError: unknown name (the nearest is named).
        CheckpointError: ``@pretrained`` where no cache has the weights, without `download`.
    """
    timm, name, pretrained = _known(spec)
    given: dict[str, Any] = {"num_classes": info.num_classes, "in_chans": info.channels}
    cfg = timm.get_pretrained_cfg(name)
    if getattr(cfg, "fixed_input_size", False):
        given["img_size"] = info.size
    if pretrained and not meta:
        given |= _cached(name, cfg, download)
    with _explained(name) if pretrained and not meta else nullcontext():
        net: nn.Module = timm.create_model(name, pretrained=pretrained and not meta, **given)
    defaults = getattr(net, "default_cfg", None) or {}
    mean, std = tuple(defaults.get("mean", info.mean)), tuple(defaults.get("std", info.std))
    if len(mean) == info.channels:
        info = replace(info, mean=mean, std=std)
    return Backbone(net, f"timm:{name}", {}, info)


def timm_classes(spec: str, *, download: bool = False) -> int:  # noqa: ARG001 - timm knows them
    """Number of classes of the pretrained weights of ``NAME@pretrained``."""
    timm, name, _ = _known(spec)
    return int(timm.get_pretrained_cfg(name).num_classes)


def _cached(name: str, cfg: Any, download: bool) -> dict[str, Any]:
    """What makes timm read the weights from a cache; nothing where it is to fetch them.

    Raises CheckpointError where no cache has them, and they may not be fetched.
    """
    hub_id, url = getattr(cfg, "hf_hub_id", None), getattr(cfg, "url", None)
    if not hub_id and not url:
        raise CheckpointError(f"timm has no weights for {name}", hint=f"write timm:{name}", code="E-WEIGHTS")
    path = _in_hub(hub_id, getattr(cfg, "hf_hub_filename", None)) or _in_torch(url)
    if path is not None:
        return {"pretrained_cfg_overlay": {"file": str(path)}}
    if not download:
        raise CheckpointError(
            f"the weights of timm:{name} ({hub_id or url}) are not on this machine",
            where="the caches of Hugging Face and of torch",
            hint="pass --download to fetch them, which needs the network",
            code="E-WEIGHTS",
        )
    return {}


def _in_hub(hub_id: str | None, filename: str | None) -> Path | None:
    """The file in Hugging Face's cache: safetensors alone."""
    if not hub_id:
        return None
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        return None
    name = filename if filename and filename.endswith(".safetensors") else _SAFE
    found = hub.try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) and os.path.isfile(found) else None


def _in_torch(url: str | None) -> Path | None:
    """The file in torch's cache, which torch reads as data alone."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(url or "")
    return path if url and path.is_file() else None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """timm's complaints about pretrained weights in one line each; code in their file is refused."""
    try:
        with weights_only(f"timm:{name}"):
            yield
    except OSError as error:
        what = f"cannot fetch the weights of timm:{name}: {first_line(error)}"
        raise ResourceError(what, hint="check the network", code="E-NET") from error


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
