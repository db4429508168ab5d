"""Variance-tuned momentum iterative fast gradient sign method.

`vmi_fgsm` has more than 50 lines: most are its documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.attacks.transforms import Transforms, copies, views
from robustcli.core.geometry import Ball
from robustcli.core.moves import unit_mean
from robustcli.core.oracle import Oracle
from robustcli.core.views import View, gradient_over
from robustcli.registry import attacks


@attacks.register(
    "vmi_fgsm",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: (
        2 * (given["steps"] + (given["steps"] - 1) * given["samples"]) * copies(given["transforms"]) + 1
    ),
    use="images that are to fool another model, when MI-FGSM's do not",
    deterministic=False,
    starts_at_clean=True,
)
def vmi_fgsm(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] | None = None,
    decay: Annotated[float, Ge(0)] = 1.0,
    samples: Annotated[int, Ge(1)] = 5,
    beta: Annotated[float, Ge(0)] = 1.5,
    transforms: Transforms = (),
    loss: Literal["ce", "margin"] | None = None,
) -> Tensor:
    """g_{k+1} = decay * g_k + (grad_k + v_k) / mean|grad_k + v_k|,  x_{k+1} = P(x_k + a * steepest(g_{k+1})).

    v_{k+1} = mean_i grad(x_k + r_i) - grad_k says how the gradient varies around x_k; x_0 = x, g_0 = v_0 = 0.
    Each r_i is uniform in the ball of radius beta * eps, and x_k + r_i is cut by the pixel box; the authors'
    code lets it leave the box. The paper divides by the sum of absolute values; the mean differs by a
    constant factor that `steepest` does not see.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W]; holds one random stream
            per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        steps: moves, >= 1; cost = `steps` + (`steps` - 1) * `samples` forward and backward passes.
        step_size: a, pixel units, > 0; None means radius / steps.
        decay: share of the old direction that is kept, >= 0.
        samples: neighbours whose gradients are averaged in each step, >= 1 (the paper: 20).
        beta: radius of the neighbourhood in units of eps, >= 0; 0 is MI-FGSM.
        transforms: how the model sees points and neighbours (docs/attacks.md); a gradient is then the mean
            over all copies, each of which costs a forward and a backward pass. A copy of other pixels is not
            met.
        loss: which loss to ascend; None means the caller's.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`; neighbours are never returned.

    Raises:
        ValueError: steps < 1, step_size <= 0, decay < 0, samples < 1 or beta < 0.

    Source: Wang & He, CVPR 2021, arXiv:2103.15571, Algorithm 1.
    """
    a = ball.check_step(steps, step_size)
    if step_size is None:
        a = ball.eps / steps
    if not (decay >= 0 and samples >= 1 and beta >= 0):
        raise ValueError(f"need decay >= 0, samples >= 1 and beta >= 0, got {decay}, {samples} and {beta}")
    seen, x_adv, g, v = views(transforms), x, torch.zeros_like(x), torch.zeros_like(x)
    neighbourhood = replace(ball, eps=beta * ball.eps)
    for k in range(steps):
        grad = gradient_over(oracle, x_adv, seen, loss)
        g = decay * g + unit_mean(grad + v)
        if k < steps - 1:
            v = _variance(oracle, x_adv, grad, neighbourhood, samples, seen, loss)
        x_adv = ball.project(x, x_adv + a * ball.steepest(g, x_adv))
        x, x_adv, g, v = oracle.compact(x, x_adv, g, v)
    return oracle.result(x_adv)


def _variance(
    oracle: Oracle,
    x_adv: Tensor,
    grad: Tensor,
    neighbourhood: Ball,
    samples: int,
    seen: Sequence[View],
    loss: str | None,
) -> Tensor:
    """mean_i grad(x_adv + r_i) - grad(x_adv): [R, C, H, W], x_adv + r_i a random point of `neighbourhood`."""
    v = torch.zeros_like(grad)
    for _ in range(samples):
        neighbour = neighbourhood.random_point(x_adv, oracle.rng)
        v += gradient_over(oracle, neighbour, seen, loss, scored=False) - grad
    return v / samples
