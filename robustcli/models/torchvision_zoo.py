"""Any torchvision classifier by name, with its weights' own normalisation."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from robustcli.errors import CheckpointError, ConfigError, ResourceError
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import IMAGENET_MEAN, IMAGENET_STD
from robustcli.registry import suggestion


def build_torchvision(
    spec: str, info: ModelInfo, *, download: bool, meta: bool = False
) -> tuple[nn.Module, ModelInfo]:
    """(network on normalised images, `info` with the weights' mean and std) for ``NAME`` or ``NAME@WEIGHTS``.

    Without weights: torchvision's own initialisation and ImageNet's mean and std. With weights: they come from the cache, or
    from the network when `download`; the head is replaced by a fresh one when their number of classes is not info.num_classes. `meta`: only
    the shape is wanted, no weights are read.

    Raises:
        ConfigError: unknown name (the nearest is named), not a classifier, unknown weights, or a size that does not fit.
        CheckpointError: weights that are not in the cache, or whose hash is wrong. ResourceError: no torchvision, no network.
    """
    zoo = _import()
    name, _, wanted = spec.partition("@")
    _check_name(zoo, name)
    sizes = _size_arguments(name, info)
    weights = _weights(zoo, name, wanted) if wanted else None
    if weights is None or meta:
        with _message(f"torchvision:{name}"):
            net: nn.Module = zoo.get_model(
                name, weights=None, num_classes=info.num_classes, **_extras(name), **sizes
            )
        return net, replace(info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    _fetch(weights, download=download)
    with _message(f"torchvision:{spec}"), _weights_only(spec):
        net = zoo.get_model(name, weights=weights, progress=False, **_extras(name), **sizes)
    preset = weights.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if getattr(
        net, "transform_input", False
    ):  # Inception and GoogLeNet renormalise to 0.5, 0.5: we normalise so at once
        net.transform_input = False  # type: ignore[assignment]
        mean = std = (0.5, 0.5, 0.5)
    replace_head(net, len(weights.meta["categories"]), info.num_classes)
    return net, replace(info, mean=mean, std=std)


def torchvision_classes(spec: str) -> int:
    """Number of classes of the named weights of ``NAME[@WEIGHTS]``; 1000 without weights."""
    zoo = _import()
    name, _, wanted = spec.partition("@")
    _check_name(zoo, name)
    return len(_weights(zoo, name, wanted).meta["categories"]) if wanted else 1000


def one_size(spec: str) -> bool:
    """Whether the network takes only the size it was built for (Transformers with position tables)."""
    return spec.startswith(("vit_", "maxvit"))


def replace_head(net: nn.Module, old: int, new: int) -> None:
    """Puts a fresh layer with `new` outputs where the last layer with `old` outputs was; nothing to do when they are equal.

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
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) else None


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # a CPU-only torch beside a CUDA torchvision fails with RuntimeError
        text = (str(error).splitlines() or [""])[0][:160]
        raise ResourceError(
            f"torchvision cannot be imported: {text}",
            hint="install the torchvision that matches this torch",
            code="E-EXTRA",
        ) from error


def _check_name(zoo: ModuleType, name: str) -> None:
    known = zoo.list_models(module=zoo)
    if name in known:
        return
    if name in zoo.list_models():
        raise ConfigError(
            f"torchvision:{name} is not an image classifier (detection, segmentation, video and quantised models cannot be attacked here)"
        )
    raise ConfigError(
        f"torchvision has no classifier {name!r}; {suggestion(name, known)}known: {', '.join(known)}".strip()
    )


def _extras(name: str) -> dict[str, Any]:
    """Without the auxiliary heads, whose training output is a tuple."""
    return {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}


def _size_arguments(name: str, info: ModelInfo) -> dict[str, Any]:
    """Transformers are built for one image size: ours."""
    if name.startswith("vit_"):
        return {"image_size": info.size}
    return {"input_size": (info.size, info.size)} if name.startswith("maxvit") else {}


def _weights(zoo: ModuleType, name: str, wanted: str) -> Any:
    enum = zoo.get_model_weights(name)
    known = [*enum.__members__]
    if wanted not in known:
        raise ConfigError(
            f"torchvision:{name} has no weights {wanted!r}; {suggestion(wanted, known)}known: {', '.join(known)}"
        )
    return enum[wanted]


def _fetch(weights: Any, *, download: bool) -> None:
    """The weights' file in torch's cache, its SHA-256 checked against the prefix in its name (torch checks only what it downloads)."""
    name = os.path.basename(weights.url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    expected = name.rpartition(".")[0].rpartition("-")[2]
    if not path.is_file():
        if not download:
            raise CheckpointError(
                f"the weights {name} are not on this machine",
                where=str(path),
                hint="pass --download to fetch them",
                code="E-WEIGHTS",
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), expected, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            hint = "check the network, or put the file there by hand"
            raise ResourceError(
                f"cannot download {name}: {error}", hint=hint, where=str(path), code="E-NET"
            ) from error
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    got = digest.hexdigest()
    if not got.startswith(expected):
        hint = "delete it and pass --download"
        raise CheckpointError(
            f"{name} has another hash: expected {expected}…, got {got[:8]}…",
            where=str(path),
            hint=hint,
            code="E-CKPT-HASH",
        )


@contextmanager
def _weights_only(spec: str) -> Iterator[None]:
    """torchvision's builders call torch.load without weights_only; the variable makes torch refuse code in the file.

    Raises CheckpointError E-CKPT-FORMAT when the file is refused, damaged, or of another network.
    """
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        text = (str(error).splitlines() or [""])[0][:200]
        what = f"the weights of torchvision:{spec} cannot be loaded: {text}"
        raise CheckpointError(
            what, hint="delete the file and pass --download", code="E-CKPT-FORMAT"
        ) from error
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _message(name: str) -> Iterator[None]:
    """A builder's own complaint about the size (Transformers) in one line."""
    try:
        yield
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{name} cannot be built: {(str(error).splitlines() or [''])[0][:200]}", hint="set data.size"
        ) from error
