"""Image classifiers of transformers, from a directory or from Hugging Face's cache: `hf:DIR_OR_NAME`.

Weights are read from safetensors alone, and no code of a repository runs.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from robustcli.errors import CheckpointError, ConfigError, PolicyError, ResourceError
from robustcli.models.backbone import Backbone
from robustcli.models.complaint import first_line
from robustcli.models.hf_images import Preparation, preparation
from robustcli.models.info import ModelInfo
from robustcli.regular import read_regular

_CONFIG, _IMAGES, _SAFE = "config.json", "preprocessor_config.json", "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST = 1 << 22
_SHOWN = 5


def build_hf(spec: str, info: ModelInfo, *, download: bool, meta: bool) -> Backbone:
    """The classifier in a directory, or of the name ``ORG/NAME``, behind what its preprocessor says.

    Images of the size that the network takes are taken as they are; others are resized and cropped inside,
    with a gradient. A fresh head replaces its own when it has another number of classes than `info`.

    Args:
        spec: the part after ``hf:``.
        info: classes and image shape.
        download: allow files that are not in the cache to be fetched.
        meta: only the shape is wanted, no weights are read.

    Raises:
        ResourceError: transformers is not installed, or no network. CheckpointError: files or tensors that
        are missing. PolicyError: only code or a pickle could make the network. ConfigError: no classifier, or
        a preprocessor that is not understood.
    """
    transformers = _import(spec)
    folder = _folder(spec, download)
    _check_own(folder)
    images = _prepared(folder, info.channels)
    with _explained(spec, transformers):
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        config.num_labels = info.num_classes
        automatic = transformers.AutoModelForImageClassification
        if meta:
            net: nn.Module = automatic.from_config(config, trust_remote_code=False)
        else:
            _check_safe(folder, spec)
            net, found = automatic.from_pretrained(
                str(folder),
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            _check_whole(found, _classes(folder), info.num_classes, spec)
    if images is not None:
        info = replace(info, mean=images.mean, std=images.std)
        if not images.leaves((info.size, info.size)):
            _shape_first(net, images)
    return Backbone(net.float(), f"hf:{spec}", {}, info)


def hf_classes(spec: str, *, download: bool = False) -> int:
    """Number of classes of ``hf:DIR_OR_NAME``, from its config.json."""
    _import(spec)
    return _classes(_folder(spec, download))


def _shape_first(net: nn.Module, images: Preparation) -> None:
    """Let `net` resize, crop and turn round its images; a hook, since its tensors keep their names."""

    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (images.shape(given[0]), *given[1:])

    net.register_forward_pre_hook(hook)


def _import(spec: str) -> ModuleType:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ResourceError(
            f"transformers cannot be imported: {first_line(error, 160)}",
            where=f"hf:{spec}",
            hint="pip install 'robustcli[hf]'",
            code="E-EXTRA",
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _folder(spec: str, download: bool) -> Path:
    """The directory of the files: the one that is named, or the snapshot in Hugging Face's cache."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if not (folder / _CONFIG).is_file():
            raise CheckpointError(f"no {_CONFIG} in it", where=str(folder), code="E-CKPT-MISSING")
        return folder
    name, _, revision = spec.partition("@")
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name):
        raise CheckpointError(f"no such directory: {spec}", code="E-CKPT-MISSING")
    hub = importlib.import_module("huggingface_hub")
    files = [_CONFIG, _IMAGES, "*.safetensors", _INDEX]
    try:
        found = hub.snapshot_download(
            name, revision=revision or None, allow_patterns=files, local_files_only=not download
        )
    except (OSError, ValueError) as error:  # its own errors are one or the other
        if download:
            what = f"cannot fetch hf:{spec}: {first_line(error)}"
            hint = "check name and network; a private one needs `hf auth login`"
            raise ResourceError(what, hint=hint, code="E-NET") from error
        raise CheckpointError(
            f"hf:{spec} is no directory, and not in Hugging Face's cache",
            hint="pass --download to fetch it, which needs the network",
            code="E-WEIGHTS",
        ) from error
    return Path(found)


def _prepared(folder: Path, channels: int) -> Preparation | None:
    path = folder / _IMAGES
    return preparation(_json(path), channels, str(path)) if path.is_file() else None


def _classes(folder: Path) -> int:
    config = _json(folder / _CONFIG)
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else config.get("num_labels", 2)
    if not isinstance(count, int) or count < 2:
        raise ConfigError(f"{count} classes", where=str(folder / _CONFIG), hint="two at least")
    return count


def _json(path: Path) -> Mapping[str, Any]:
    try:
        stated = json.loads(read_regular(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"not readable: {first_line(error)}", where=str(path), code="E-CKPT-FORMAT"
        ) from error
    if not isinstance(stated, Mapping):
        raise CheckpointError("no mapping", where=str(path), code="E-CKPT-FORMAT")
    return stated


def _check_own(folder: Path) -> None:
    """Raises ConfigError for a network of timm: its mean and std stand where transformers has its own."""
    config = _json(folder / _CONFIG)
    if config.get("model_type") == "timm_wrapper" or "pretrained_cfg" in config:
        hint = f"--model timm:{config.get('architecture', 'NAME')} --weights {folder / _SAFE}"
        raise ConfigError("a network of timm", where=str(folder), hint=hint)


def _check_safe(folder: Path, spec: str) -> None:
    """Raises an error where no safetensors are in the directory."""
    if (folder / _SAFE).is_file() or (folder / _INDEX).is_file():
        return
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        raise PolicyError(
            f"holds its weights as {pickles[0]}, which may run code when it is loaded",
            where=str(folder),
            hint=f"--model hf:{spec} --weights {folder / pickles[0]} --allow-pickle-weights reads it as data",
            code="E-PICKLE",
        )
    raise CheckpointError(f"no {_SAFE} in it", where=str(folder), code="E-CKPT-MISSING")


def _check_whole(found: Mapping[str, Any], own: int, asked: int, spec: str) -> None:
    """Raises CheckpointError for tensors that the file lacks; transformers would draw them at random."""
    missing = sorted(map(str, found.get("missing_keys", ())))
    shapes = sorted(str(fault[0]) for fault in found.get("mismatched_keys", ()))
    faults = {"missing": missing, "of another shape": shapes if own == asked else []}
    text = "; ".join(f"{kind}: {', '.join(names[:_SHOWN])}" for kind, names in faults.items() if names)
    if text:
        raise CheckpointError(f"the weights do not fit: {text}", where=f"hf:{spec}", code="E-CKPT-SHAPE")


@contextmanager
def _explained(spec: str, transformers: ModuleType) -> Iterator[None]:
    """transformers' complaints in one line each."""
    where = f"hf:{spec}"
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        text = first_line(error)
        if "trust_remote_code" in str(error):
            raise PolicyError(
                "the network is made by code of its repository, which is never run",
                where=where,
                hint="give the code as your own: --plugin FILE.py:factory --weights FILE",
                code="E-PLUGIN",
            ) from error
        if "Unrecognized configuration class" in str(error):
            raise ConfigError("transformers has no image classifier of this kind", where=where) from error
        what = f"transformers {transformers.__version__} cannot load it: {text}"
        raise CheckpointError(what, where=where, code="E-CKPT-FORMAT") from error
