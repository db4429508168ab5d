"""Any torchvision classifier by name, with its weights' own normalisation."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import nn

from robustcli.errors import ConfigError, ResourceError
from robustcli.models.backbone import Backbone
from robustcli.models.complaint import first_line
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from robustcli.models.torchvision_weights import fetch, find_weights, weights_only
from robustcli.registry import suggestion

IMAGENET_CLASSES = 1000
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def build_torchvision(spec: str, info: ModelInfo, *, download: bool, meta: bool) -> Backbone:
    """The network ``NAME`` or ``NAME@WEIGHTS``, with the mean and std that it needs.

    Without weights: torchvision's own initialisation and ImageNet's mean and std. With weights: a fresh head
    replaces theirs when their number of classes is not `info.num_classes`.

    Args:
        spec: the part after ``torchvision:``.
        info: classes and image shape.
        download: allow torchvision to fetch weights that are not in its cache.
        meta: only the shape is wanted, no weights are read.

    Raises:
        ConfigError: unknown name (the nearest is named), not a classifier, unknown weights, or a size that
        does not fit. CheckpointError: weights that are not in the cache, or whose hash is wrong.
        ResourceError: no torchvision, no network.
    """
    zoo, name, weights = _known(spec)
    arguments = _arguments(name, info)
    if weights is None or meta:
        with _size_complaint(f"torchvision:{name}"):
            net: nn.Module = zoo.get_model(name, weights=None, num_classes=info.num_classes, **arguments)
        info = replace(info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    else:
        fetch(weights, download=download)
        with _size_complaint(f"torchvision:{spec}"), weights_only(f"torchvision:{spec}"):
            net = zoo.get_model(name, weights=weights, progress=False, **arguments)
        mean, std = _normalisation(net, weights)
        replace_head(net, len(weights.meta["categories"]), info.num_classes)
        info = replace(info, mean=mean, std=std)
    return Backbone(net, f"torchvision:{name}", {}, info, fixed_size=_takes_one_size(name))


def torchvision_classes(spec: str, *, download: bool = False) -> int:  # noqa: ARG001 - its table has them
    """Number of classes of the weights of ``NAME@WEIGHTS``; 1000 without weights."""
    weights = _known(spec)[2]
    if weights is None:
        return IMAGENET_CLASSES
    return len(weights.meta["categories"])


def replace_head(net: nn.Module, old: int, new: int) -> None:
    """Puts a fresh layer with `new` outputs in place of the last layer with `old` outputs.

    Equal numbers change nothing.
    Raises ConfigError when the network has no such layer.
    """
    if old == new:
        return
    heads = [(path, m) for path, m in net.named_modules() if _outputs(m) == old]
    if not heads:
        raise ConfigError(
            f"{type(net).__name__} has no layer with {old} outputs that could be replaced by one with {new}"
        )
    path, head = heads[-1]
    parent = net.get_submodule(path.rpartition(".")[0])
    bias = head.bias is not None
    fresh: nn.Module
    if isinstance(head, nn.Conv2d):  # SqueezeNet ends in a 1x1 convolution
        fresh = nn.Conv2d(head.in_channels, new, 1, bias=bias)
    else:
        assert isinstance(head, nn.Linear)
        fresh = nn.Linear(head.in_features, new, bias=bias)
    setattr(parent, path.rpartition(".")[2], fresh)


def _outputs(module: nn.Module) -> int | None:
    """Outputs of a layer that may be a head: a linear one, or a 1x1 convolution."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.out_channels
    return None


def _known(spec: str) -> tuple[ModuleType, str, Any]:
    """(torchvision.models, name, entry of the weights or None), each checked."""
    zoo = _import()
    name, _, weights = spec.partition("@")
    _check_name(zoo, name)
    if not weights:
        return zoo, name, None
    return zoo, name, find_weights(zoo, name, weights)


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: its CUDA is not that of this torch
        raise ResourceError(
            f"torchvision cannot be imported: {first_line(error, 160)}",
            hint="install the torchvision that matches this torch",
            code="E-EXTRA",
        ) from error


def _check_name(zoo: ModuleType, name: str) -> None:
    known = zoo.list_models(module=zoo)
    if name in known:
        return
    if name in zoo.list_models():
        raise ConfigError(
            f"torchvision:{name} is not an image classifier "
            "(detection, segmentation, video and quantised models cannot be attacked here)"
        )
    raise ConfigError(
        f"torchvision has no classifier {name!r}; {suggestion(name, known)}known: {', '.join(known)}".strip()
    )


def _takes_one_size(name: str) -> bool:
    """Whether the network takes only the size it was built for (Transformers with position tables)."""
    return name.startswith(("vit_", "maxvit"))


def _arguments(name: str, info: ModelInfo) -> dict[str, Any]:
    """What a builder must be told: a Transformer its image size, others to leave auxiliary heads out."""
    if name in _WITH_AUXILIARY_HEADS:  # in training their output would be a tuple
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": info.size}
    if name.startswith("maxvit"):
        return {"input_size": (info.size, info.size)}
    return {}


def _normalisation(net: nn.Module, weights: Any) -> Normalisation:
    """(mean, std) of pretrained weights; `net` no longer renormalises by itself."""
    if getattr(net, "transform_input", False):  # Inception and GoogLeNet would renormalise to 0.5, 0.5
        net.transform_input = False  # type: ignore[assignment]
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    preset = weights.transforms()
    return tuple(preset.mean), tuple(preset.std)


@contextmanager
def _size_complaint(name: str) -> Iterator[None]:
    """A Transformer's complaint about the image size becomes a ConfigError of one line."""
    try:
        yield
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise ConfigError(f"{name} cannot be built: {first_line(error)}", hint="set data.size") from error
