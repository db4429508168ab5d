"""Decoupled direction and norm.

`ddn` has more than 50 lines: all but a dozen are its documentation.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.hyperplane import length
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

_TINY = 1e-12


@attacks.register(
    "ddn",
    kind="minimal",
    norms=("l2",),
    needs="gradient",
    precision="fp32",
    passes=lambda given, classes, norm: 2 * given["steps"] + 1,
    use="small l2 distances; a second opinion beside fmn at the same cost",
    deterministic=True,
)
def ddn(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    first_norm: Annotated[float, Gt(0)] = 1.0,
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05,
    step_size: Annotated[float, Gt(0)] = 1.0,
    step_size_final: Annotated[float, Gt(0)] = 0.01,
    loss: Literal["ce", "margin"] = "ce",
) -> Tensor:
    """x_{k+1} = clip(x + eps_k u / ||u||_2),  u = x_k - x + a_k g / ||g||_2.

    g is the gradient of the loss at x_k. It decides the direction alone: eps_k, the length, is multiplied by
    1 - gamma after a success and by 1 + gamma after a failure. So the search goes to and fro across the
    boundary while it turns towards the nearest point of it.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W]; remembers the closest
            success.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: the box; its radius is not used.
        steps: gradient evaluations, >= 1; cost = `steps` forward and backward passes, and one forward pass
            for the final point.
        first_norm: eps_0 before the first step, l2 length in pixel units, > 0.
        gamma: relative change of eps in a step, in (0, 1).
        step_size: a_0, l2 length in pixel units, > 0.
        step_size_final: a at the end, reached as a cosine falls, > 0.
        loss: what is ascended; "margin" still has a slope where cross-entropy is 0 in float32.

    Returns:
        x_adv [B, C, H, W], detached, in the box: where the oracle remembers points the closest success of
        each row, or x, else the last point. Pixels are not rounded to 8 bits, as the paper's are.

    Raises:
        ValueError: steps < 1, or first_norm, gamma, step_size or step_size_final out of range.

    Source: Rony et al., CVPR 2019, arXiv:1811.09600, Algorithm 1.
    """
    ball.check_step(steps, step_size)
    if not (first_norm > 0 and step_size_final > 0):
        raise ValueError(
            f"first_norm and step_size_final must be > 0, got {first_norm} and {step_size_final}"
        )
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must be in (0, 1), got {gamma}")
    x_adv, eps = x, x.new_full((len(x),), first_norm)
    farthest = length(torch.maximum(x - ball.low, ball.high - x), "l2")
    for k in range(steps):
        share = (1 + math.cos(math.pi * k / steps)) / 2
        a = step_size_final + (step_size - step_size_final) * share
        _, logits, grad = oracle.gradient(x_adv, loss)
        eps = torch.minimum(eps * torch.where(oracle.hit(logits), 1 - gamma, 1 + gamma), farthest)
        x, x_adv, grad, eps, farthest = oracle.compact(x, x_adv, grad, eps, farthest)
        u = x_adv - x + a * ball.steepest(grad)
        x_adv = (x + u * column(eps / length(u, "l2").clamp_min(_TINY), u)).clamp(ball.low, ball.high)
    return oracle.result(x_adv)
