"""Copies of networks that are not ours, and of tensors on a device."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustcli.errors import out_of_memory

M = TypeVar("M", bound=nn.Module)


def duplicate(model: M) -> M:
    """A deep copy of a module, which shares nothing with it.

    copy.deepcopy refuses tensors that have a graph. Weight normalisation of the old kind keeps such a tensor
    between two passes; it computes it anew before the next, so the copy gets its numbers alone.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    with torch.no_grad():  # TorchScript copies by operations, whose results would have a graph
        copied = copy.deepcopy(model, memo)
    for own, original in zip(copied.parameters(), model.parameters(), strict=True):
        own.requires_grad_(original.requires_grad)
    return copied


def copy_of(model: M) -> M | Exception:
    """`duplicate`, or the failure of a network whose code refuses to be copied.

    Raises what says that memory is out.
    """
    try:
        return duplicate(model)
    except Exception as failure:  # a deep copy runs code of the user's
        if out_of_memory(failure):
            raise
        return failure


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. To CUDA it goes from page-locked memory: for such a copy nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
