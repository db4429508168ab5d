"""Input gradients that point the same way all over the ball: the cure for overfitting to one-step attacks."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from robustcli.core.losses import bind_inner, wide
from robustcli.core.types import Batch, Classifier
from robustcli.registry import regularizers

_RESTART = -1  # attacks count restarts from 0, so that eta is independent of where they start


@regularizers.register(
    "gradalign", passes=8, twice=True, ball=True, use="keeps one-step training from collapsing"
)
def gradalign(model: Classifier, batch: Batch, *, weight: Annotated[float, Ge(0)] = 0.2) -> Tensor:
    """weight * (1 - mean_i cos(g_i(x), g_i(x + eta))), g_i = grad CE(f(.)_i, y_i); cost 8 passes.

    eta is uniform in the ball, cut by the pixel box. It is drawn from `batch.rng`, and the same at each call
    with one batch. g(x) is held constant, as in the authors' FGSM runs: the second derivative goes through
    g(x + eta) alone. A row where either gradient is 0 has no angle and is left out of the mean. With no row
    left the result is 0. weight = 0 gives 0 and no pass. In training mode the two forward passes change
    BatchNorm's running statistics, unless the caller restores them.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; must be differentiable twice.
        batch: x, ball, rng and y (int64 [B]), or y_soft [B, K], are used.
        weight: no unit, >= 0; on CIFAR-10 0.2 for linf 8/255, and 0.02 * 10^(eps * 255 / 8) for other radii.

    Raises:
        ValueError: weight < 0.

    Source: Andriushchenko & Flammarion, NeurIPS 2020, arXiv:2007.02617, section 5.
    """
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    if weight == 0:
        return batch.x.new_zeros(())
    near = batch.ball.random_point(batch.x, batch.rng.restart(_RESTART))
    here, there = (
        _input_gradient(model, batch, batch.x, graph=False),
        _input_gradient(model, batch, near, graph=True),
    )
    angled = (here != 0).any(1) & (there != 0).any(1)
    cos = (_unit(here, angled) * _unit(there, angled)).sum(1)
    return weight * torch.where(angled, 1 - cos, torch.zeros_like(cos)).sum() / angled.sum().clamp_min(1)


def _input_gradient(model: Classifier, batch: Batch, at: Tensor, *, graph: bool) -> Tensor:
    """grad of the summed cross-entropy at pixels `at` [B, C, H, W], as [B, C * H * W].

    graph: whether the answer can be differentiated again.
    """
    point = at.detach().requires_grad_(True)
    loss = bind_inner("ce", batch.y, y_soft=batch.y_soft)(wide(model(point))).sum()
    (grad,) = torch.autograd.grad(loss, point, create_graph=graph)
    return wide(grad).flatten(1)


def _unit(g: Tensor, angled: Tensor) -> Tensor:
    """g / ||g||_2 per row [B, d]; a constant row where `angled`, bool [B], is false.

    g is divided by max |g| first: without that, squares of tiny gradients underflow.
    """
    g = torch.where(angled[:, None], g, torch.ones_like(g))
    g = g / g.detach().abs().amax(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    return g / length
