"""What a network sees in an image: the inputs of its last linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.modes import watched


def features_of(model: nn.Module, x: Tensor) -> Tensor:
    """float32 [b, d], each of length 1: what the last linear layer that works gets, else the logits.

    Args:
        model: images [b, C, H, W] in [0, 1] -> logits; held in eval mode meanwhile, and unchanged.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and len(inputs[0]) == len(x):
            seen[:] = [inputs[0]]

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with watched(model, [layer.register_forward_pre_hook(keep) for layer in layers]):
        logits = model(x)
    return F.normalize((seen or [logits])[0].detach().float().flatten(1), dim=1)


def viewed(vectors: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """float32 [b, 2, d]: the vectors of images and of their mirror images."""
    return torch.stack([vectors(x), vectors(x.flip(3))], 1)
