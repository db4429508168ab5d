"""The gradient at a point, averaged over changed views of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom


class View(NamedTuple):
    """What the model is shown in place of a point.

    show: (x [R, C, H, W], one random stream per row) -> pixels [R, C, H, W], differentiable in x.
    still: whether these are the pixels of x, and only the gradient differs.
    """

    show: Callable[[Tensor, RowRandom], Tensor]
    still: bool = False


def gradient_over(
    oracle: Oracle, x_adv: Tensor, views: Sequence[View], loss: str | None = None, *, scored: bool = True
) -> Tensor:
    """mean_k grad_x loss(view_k(x)) at x = x_adv, [R, C, H, W].

    A view that shows other pixels is no point of the search: it is not met. Cost: a forward and a backward
    pass for each view.

    Args:
        oracle: is asked about the views, and has the random streams of the rows.
        x_adv: pixels [R, C, H, W].
        views: how the model sees them; empty for the point itself.
        loss: which loss to ascend; None means the oracle's.
        scored: whether the point is met where a view shows it as it is.
    """
    if not views:
        return oracle.gradient(x_adv, loss, scored=scored).grad
    total = torch.zeros_like(x_adv)
    for view in views:
        point = x_adv.detach().requires_grad_(True)
        with torch.enable_grad():
            seen = view.show(point, oracle.rng)
        grad = oracle.gradient(seen.detach(), loss, scored=scored and view.still).grad
        (back,) = torch.autograd.grad(seen, point, grad)
        total += back
    return total / len(views)
