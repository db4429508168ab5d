"""A backward pass for what has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Straight(torch.autograd.Function):
    """forward: the second argument; backward: as if it were the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, changed: Tensor) -> Tensor:  # noqa: ARG004
        return changed.view_as(changed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grads[0], None


def straight(x: Tensor, changed: Tensor) -> Tensor:
    """`changed`, with the gradient of the identity in x; both [B, ...] of one shape.

    Source: backward pass differentiable approximation (BPDA), Athalye et al., ICML 2018, arXiv:1802.00420.
    """
    answer: Tensor = _Straight.apply(x, changed.detach())
    return answer
