"""The gradient of a loss at the images, also where code that is not ours restricts how it is asked."""

from __future__ import annotations

import torch
from torch import Tensor


def slope(values: Tensor, point: Tensor, *, whole: bool = False) -> Tensor:
    """d sum(values) / d point, of point's shape; zeros where the values do not depend on it.

    Args:
        values: [R], with their graph, which is freed.
        point: a leaf with a gradient, [R, C, H, W].
        whole: run the whole backward pass, which re-entrant checkpointing needs. Nothing else in the graph
            may ask for a gradient: it would be added to its `.grad`.
    """
    if not values.requires_grad:
        return torch.zeros_like(point)
    if not whole:
        (grad,) = torch.autograd.grad(values.sum(), point, materialize_grads=True)
        return grad
    values.sum().backward()
    found, point.grad = point.grad, None
    return torch.zeros_like(point) if found is None else found


def needs_whole_backward(error: BaseException) -> bool:
    """Whether a backward pass failed because a network uses re-entrant checkpointing."""
    return isinstance(error, RuntimeError) and "use_reentrant" in str(error)
