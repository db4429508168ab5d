"""What a forward pass without gradient keeps in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.modes import watched


def forward_bytes(model: nn.Module, shape: tuple[int, ...], batch: int) -> int:
    """Bytes of the largest layer's input and output for `batch` images of this shape, [C, H, W].

    Without a gradient no other activation is kept, but for those of branches that wait to be added. They are
    counted as one input more.
    """
    largest = 0

    def look(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal largest
        if not list(module.children()):
            held = [*args, *args[:1], output]
            largest = max(largest, sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor)))

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with watched(model, [module.register_forward_hook(look) for module in model.modules()]):
        model(torch.zeros(1, *shape, device=device))
    return largest * batch
