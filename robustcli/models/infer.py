"""The shape of a network that is about to be loaded: what the caller knows, completed from the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from robustcli.errors import CheckpointError, UsageError
from robustcli.models.build import build_model
from robustcli.models.fill import holds_normalisation
from robustcli.models.info import ModelInfo
from robustcli.models.timm_zoo import timm_classes
from robustcli.models.torchvision_zoo import torchvision_classes
from robustcli.registry import models

ZOOS = ("torchvision:", "timm:")


@dataclass(frozen=True)
class Shape:
    """What the caller knows of the data; None where it does not."""

    num_classes: int | None
    channels: int | None
    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def info(self) -> ModelInfo | None:
        """The ModelInfo, when nothing is missing (normalisation: [0, 1] pixels as they are)."""
        if self.num_classes is None or self.channels is None or self.size is None:
            return None
        return ModelInfo(
            self.num_classes,
            self.channels,
            self.size,
            self.mean or (0.0,) * self.channels,
            self.std or (1.0,) * self.channels,
        )


def infer_info(name: str, state: Mapping[str, Tensor] | None, shape: Shape) -> ModelInfo:
    """Classes and shape of a named network: from the caller, else from the weights, else the zoo's usual ones.

    Raises UsageError E-MODEL when they cannot be known, or there are no weights and `num_classes` is not given; ConfigError or
    CheckpointError for an unknown name.
    """
    zoo, classes = name.startswith(ZOOS), shape.num_classes
    if state is None and classes is None:
        classes = _pretrained_classes(name)
    head = (state or {}).get("backbone.head.weight", (state or {}).get("head.weight"))
    if classes is None and head is not None and head.ndim == 2:
        classes = head.shape[0]
    if classes is None and not zoo:
        _known(name)
        raise UsageError(
            f"the number of classes of {name} is not known", hint="give num_classes", code="E-MODEL"
        )
    if shape.size is None and name in models and models.get(name).facts.fixed_size:
        raise UsageError(f"{name} is built for one image size", hint="give size", code="E-MODEL")
    known = state if state is not None and holds_normalisation(state) else {}
    mean = tuple(known["mean"].flatten().tolist()) if known else shape.mean
    std = tuple(known["std"].flatten().tolist()) if known else shape.std
    channels = shape.channels or len(mean or (0, 0, 0))
    filled = replace(
        shape,
        num_classes=classes or 1000,
        channels=channels,
        size=shape.size or (224 if zoo else 32),
        mean=mean,
        std=std,
    )
    info = filled.info()
    assert info is not None
    return info


def _pretrained_classes(name: str) -> int:
    """K of ``torchvision:NAME@WEIGHTS``; anything without weights is refused: an untrained network tells nothing."""
    zoo, _, rest = name.partition(":")
    if name.startswith(ZOOS) and "@" in rest:
        return (torchvision_classes if zoo == "torchvision" else timm_classes)(rest)
    _known(name)
    hint = (
        "give weights=FILE, run:PATH or torchvision:NAME@WEIGHTS; with num_classes an untrained one is built"
    )
    raise UsageError(f"{name} has no weights", hint=hint, code="E-MODEL")


def _known(name: str) -> None:
    """An unknown name is told from a missing file before anything else."""
    if name.startswith(ZOOS) or name in models:
        return
    if Path(name).suffix or os.sep in name:
        raise CheckpointError(f"no such file: {name}", hint="a run is named run:PATH", code="E-CKPT-MISSING")
    build_model(
        name, {}, ModelInfo(2, 1, 1, (0.0,), (1.0,)), seed=0, meta=True
    )  # its ConfigError names the nearest
