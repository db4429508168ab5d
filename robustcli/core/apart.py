"""The two aims of an attack on a guarded model, apart: a wrong class, and no rejection.

All take raw logits [R, K + 1] of the rows in play, as `Oracle.gradient` hands them over with raw=True. Of a
model without a guard these are the K class logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.core.losses import ce, margin
from robustcli.core.oracle import Oracle

#: Logits by which a wrong class must lead before a search turns to the rejection, as its authors have it.
_LEAD = 0.05


def class_loss(oracle: Oracle) -> Callable[[Tensor], Tensor]:
    """Raw logits -> CE(z_1 .. z_K, y), or -CE towards the target: [R], in nats."""

    def loss(logits: Tensor) -> Tensor:
        classes = logits[:, : oracle.criterion.reject]
        if oracle.target is not None:
            return -ce(classes, oracle.target)
        return ce(classes, oracle.y)

    return loss


def crossed(oracle: Oracle, logits: Tensor) -> Tensor:
    """bool [R]: whether the class logits alone are a success, by `_LEAD` at least."""
    classes = logits[:, : oracle.criterion.reject]
    if oracle.target is not None:
        return margin(classes, oracle.target) < -_LEAD
    return margin(classes, oracle.y) > _LEAD


def rejected(oracle: Oracle, logits: Tensor) -> Tensor:
    """bool [R]: whether the model rejects."""
    return oracle.criterion.excess(logits) > 0


def guarded(oracle: Oracle) -> bool:
    """Whether the model may reject."""
    return oracle.criterion.reject is not None


def evasion(oracle: Oracle, enough: float = math.inf) -> Callable[[Tensor], Tensor]:
    """Raw logits -> -max(z_reject - max_k z_k, -enough): [R]. Further in than `enough` there is no slope."""

    def loss(logits: Tensor) -> Tensor:
        return -oracle.criterion.excess(logits).clamp_min(-enough)

    return loss


def off(grad: Tensor, other: Tensor) -> Tensor:
    """grad - <grad, other> / <other, other> * other per row: the part of `grad` that leaves `other` alone.

    grad, other: [R, C, H, W]. Where `other` is 0 it is `grad`.
    """
    a, b = grad.flatten(1), other.flatten(1)
    length = (b * b).sum(1, keepdim=True)
    share = torch.where(length > 0, (a * b).sum(1, keepdim=True) / length.clamp_min(1e-30), 0.0)
    return (a - share * b).reshape(grad.shape)
