"""Proofs by bounds of the network: least margins of a batch, and how many images fit into memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from robustcli.core.bounds import Method, analyse, forecast, trace
from robustcli.core.geometry import Ball
from robustcli.data.split import free_bytes

IBP: Final = "ibp"
CROWN: Final = "crown"
ALPHA: Final = "alpha-crown"
LARGEST: Final = 256  # images
_SHARE = 0.5  # of the free memory that a batch may take


class Least(NamedTuple):
    """What a method says of a batch.

    Args:
        margins: float64 [B]; above 0 the class is proven.
        unoptimised: the same before slopes were optimised; those of crown under alpha-crown.
        looser: places of the images with a bound of plain CROWN that was looser than the box of IBP. The box
            was taken there.
    """

    margins: Tensor
    unoptimised: Tensor
    looser: set[int]


class Bounds:
    """Least margins of a network; its operations are traced once, its weights are read at each call.

    Args:
        model: pixels [B, C, H, W] -> logits [B, K], normalisation inside.
        shape: (C, H, W).
        alpha_steps: steps of alpha-CROWN.

    Raises UsageError E-BOUNDS for an operation without bounds.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], alpha_steps: int) -> None:
        self._program, self._alpha_steps = trace(model, shape), alpha_steps

    def least(self, method: Method, x: Tensor, label: Tensor, ball: Ball) -> Least:
        """Sound lower bounds of min_{k != label} z_label - z_k over the ball around each image.

        x: pixels [B, C, H, W] in [0, 1]; label: int64 [B].
        """
        found = analyse(self._program, x, label, ball, method=method, alpha_steps=self._alpha_steps)
        looser: set[int] = set().union(*(one.images for one in found.looser))
        return Least(found.margins.amin(1), found.unoptimised.amin(1), looser)

    def forecast(self, method: Method, batch: int) -> int:
        """Bytes that a batch takes."""
        return forecast(self._program, batch, method)

    def fitting(self, method: Method, most: int | None, device: torch.device) -> int:
        """Images per batch, `most` at the most: halved until they take half of the free memory."""
        size = most or LARGEST
        free = free_memory(device)
        while size > 1 and free is not None and self.forecast(method, size) > _SHARE * free:
            size //= 2
        return size


def free_memory(device: torch.device) -> int | None:
    """Bytes that may still be allocated; None where the system does not tell."""
    if device.type == "cuda":
        return free_bytes(device)
    try:
        known = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(known[1]) * 1024 if known else None
