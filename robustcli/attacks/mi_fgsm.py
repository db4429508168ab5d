"""Momentum iterative fast gradient sign method."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.attacks.transforms import Transforms, copies, views
from robustcli.core.geometry import Ball
from robustcli.core.moves import unit_mean
from robustcli.core.oracle import Oracle
from robustcli.core.views import gradient_over
from robustcli.registry import attacks


@attacks.register(
    "mi_fgsm",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: 2 * given["steps"] * copies(given["transforms"]) + 1,
    use="images that are to fool another model",
    deterministic=True,
    starts_at_clean=True,
)
def mi_fgsm(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] | None = None,
    decay: Annotated[float, Ge(0)] = 1.0,
    transforms: Transforms = (),
    loss: Literal["ce", "margin"] | None = None,
) -> Tensor:
    """g_{k+1} = decay * g_k + grad_k / mean|grad_k|,  x_{k+1} = P(x_k + a * steepest(g_{k+1})).

    x_0 = x and g_0 = 0. The paper divides by the sum of |grad|; the mean differs by a constant factor that
    `steepest` does not see.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W].
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        steps: gradient evaluations, >= 1; cost = `steps` forward and backward passes.
        step_size: a, pixel units, > 0; None means radius / steps.
        decay: share of the old direction that is kept, >= 0; 0 is iterated FGSM.
        transforms: how the model sees the point (docs/attacks.md); a gradient is then the mean over all
            copies, each of which costs a forward and a backward pass. A copy of other pixels is not met.
        loss: which loss to ascend; None means the caller's.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`.

    Raises:
        ValueError: steps < 1, step_size <= 0 or decay < 0.

    Source: Dong et al., CVPR 2018, arXiv:1710.06081.
    """
    a = ball.check_step(steps, step_size)
    if step_size is None:
        a = ball.eps / steps
    if not decay >= 0:
        raise ValueError(f"decay must be >= 0, got {decay}")
    seen, x_adv, g = views(transforms), x, torch.zeros_like(x)
    for _ in range(steps):
        grad = gradient_over(oracle, x_adv, seen, loss)
        g = decay * g + unit_mean(grad)
        x_adv = ball.project(x, x_adv + a * ball.steepest(g, x_adv))
        x, x_adv, g = oracle.compact(x, x_adv, g)
    return oracle.result(x_adv)
