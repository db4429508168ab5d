"""What every builder of architectures returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from robustcli.models.info import ModelInfo


@dataclass(frozen=True)
class Backbone:
    """A network behind its normalisation, and what is stored about it.

    Args:
        net: normalised images [B, C, H, W] -> logits [B, K].
        arch: name that `build_model` understands.
        params: all parameters of the architecture, defaults too.
        info: classes and shape as asked for, with the normalisation that the network needs.
        fixed_size: whether only images of side `info.size` fit.
    """

    net: nn.Module
    arch: str
    params: dict[str, Any]
    info: ModelInfo
    fixed_size: bool = False
