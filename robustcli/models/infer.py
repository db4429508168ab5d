"""Classes and shape of a network before it is loaded: what the caller knows, completed from the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.errors import CheckpointError, UsageError
from robustcli.models.build import build_model
from robustcli.models.fill import holds_normalisation
from robustcli.models.info import ModelInfo
from robustcli.models.request import DataFacts
from robustcli.models.zoos import split_zoo
from robustcli.registry import models
from robustcli.store.names import Kind, find

_ZOO_CLASSES, _ZOO_SIZE = 1000, 224  # ImageNet's
_UNLIKELY = 1013  # a number of classes that no layer of a network has by chance
_OWN_SIZE = 32


def infer_info(
    name: str,
    state: Mapping[str, Tensor] | None,
    data: DataFacts,
    params: Mapping[str, Any] | None = None,
    kind: Kind = "auto",
    download: bool = False,
) -> ModelInfo:
    """Classes and shape of a named network: the caller's, else the weights', else the zoo's usual ones.

    Args:
        name: as `build_model` takes it.
        state: the weights that will be loaded into the network; None without a file.
        data: what the caller knows.
        params: of the architecture.
        kind: which of several sets of weights is meant.
        download: whether what says the number of classes may be fetched.

    Raises:
        UsageError E-MODEL: they cannot be known, or there are no weights and no `num_classes`. ConfigError or
        CheckpointError: an unknown name.
    """
    if state is None and data.num_classes is None:
        data = replace(data, num_classes=_pretrained_classes(name, download))
    if data.size is None and name in models and models.get(name).facts.fixed_size:
        raise UsageError(f"{name} is built for one image size", hint="give size", code="E-MODEL")
    if state is not None and holds_normalisation(state):
        data = replace(data, mean=_numbers(state["mean"]), std=_numbers(state["std"]))
    completed = replace(
        data,
        num_classes=data.num_classes or _UNLIKELY,
        channels=data.channels or len(data.mean or (0, 0, 0)),
        size=data.size or _usual_size(name),
    )
    info = completed.info()
    assert info is not None
    if data.num_classes is None and state is not None:
        info = replace(info, num_classes=_classes_in(name, state, info, params or {}, kind))
    return info


def _classes_in(
    name: str, state: Mapping[str, Tensor], info: ModelInfo, params: Mapping[str, Any], kind: Kind
) -> int:
    """K of the head in the weights; where they have none, a zoo's usual K.

    The head is the last layer with as many outputs as `info` has classes, an unlikely number.
    """
    _check_known(name)
    shapes = build_model(name, params, info, seed=0, meta=True).backbone.state_dict()
    heads = [key for key, value in shapes.items() if value.ndim and value.shape[0] == info.num_classes]
    tensors = find(state, shapes, where=name, kind=kind).tensors
    found = [tensors[key].shape[0] for key in heads if key in tensors and tensors[key].ndim]
    if found:
        return found[-1]
    if _in_zoo(name):
        return _ZOO_CLASSES
    raise UsageError(f"the number of classes of {name} is not known", hint="give num_classes", code="E-MODEL")


def _pretrained_classes(name: str, download: bool) -> int:
    """K of ``torchvision:NAME@WEIGHTS``. Raises UsageError for a name without weights."""
    zoo, spec = split_zoo(name)
    if zoo is not None and zoo.pretrained(spec):
        return zoo.classes(spec, download=download)
    _check_known(name)
    raise UsageError(
        f"{name} has no weights",
        hint="give weights=FILE, run:PATH or torchvision:NAME@WEIGHTS; "
        "with num_classes an untrained one is built",
        code="E-MODEL",
    )


def _check_known(name: str) -> None:
    """Raises CheckpointError for what looks like a missing file, ConfigError for any other unknown name."""
    if _in_zoo(name) or name in models:
        return
    if Path(name).suffix or os.sep in name:
        raise CheckpointError(f"no such file: {name}", hint="a run is named run:PATH", code="E-CKPT-MISSING")
    smallest = ModelInfo(2, 1, 1, (0.0,), (1.0,))
    build_model(name, {}, smallest, seed=0, meta=True)  # its ConfigError names the nearest


def _in_zoo(name: str) -> bool:
    return split_zoo(name)[0] is not None


def _usual_size(name: str) -> int:
    return _ZOO_SIZE if _in_zoo(name) else _OWN_SIZE


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(tensor.flatten().tolist())
