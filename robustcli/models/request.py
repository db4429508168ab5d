"""What a caller says beside the reference to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.models.info import ModelInfo
from robustcli.store.names import Kind
from robustcli.store.weights import read_weights


@dataclass(frozen=True)
class DataFacts:
    """What the caller knows of the data; None where it does not know."""

    num_classes: int | None
    channels: int | None
    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def info(self) -> ModelInfo | None:
        """The ModelInfo, None while classes, channels or size are missing. Default normalisation: none."""
        if self.num_classes is None or self.channels is None or self.size is None:
            return None
        return ModelInfo(
            self.num_classes,
            self.channels,
            self.size,
            self.mean or (0.0,) * self.channels,
            self.std or (1.0,) * self.channels,
        )


@dataclass(frozen=True)
class Request:
    """The arguments of `load_model` beside the reference, as they are documented there."""

    weights: str | Path | None
    arch: str | None
    params: Mapping[str, Any]
    plugin: str | None
    data: DataFacts
    normalize: str | None
    allow_pickle: bool
    download: bool
    seed: int
    kind: Kind
    say: Callable[[str], None]

    def state(self) -> dict[str, Tensor] | None:
        """The tensors of the weight file, None without one. Raises as `read_weights`."""
        if self.weights is None:
            return None
        return read_weights(Path(self.weights), allow_pickle=self.allow_pickle, kind=self.kind)
