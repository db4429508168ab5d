"""Fast minimum-norm attack.

`fmn` has more than 50 lines: most are its documentation, and its one loop is the published algorithm.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from robustcli.core.geometry import Ball, Norm
from robustcli.core.hyperplane import dual_length, length
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

#: A linf step has to move every pixel: l2 length 1 shared by 784 pixels is 0.04 each, too little for eps 0.3.
_FIRST_STEP: dict[Norm, float] = {"linf": 10.0, "l2": 1.0, "l1": 1.0}
_TINY = 1e-12


@attacks.register(
    "fmn",
    kind="minimal",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="fp32",
    passes=lambda given, classes, norm: 2 * given["steps"] + 1,
    use="distances for a whole curve of accuracy against eps in one run",
    deterministic=True,
)
def fmn(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Gt(0)] | None = None,
    step_size_final: Annotated[float, Gt(0)] | None = None,
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05,
    gamma_final: Annotated[float, Gt(0), Lt(1)] = 0.001,
) -> Tensor:
    """min ||d||_p with x + d misclassified:  d_{k+1} = P_eps(d_k + a_k g / ||g||_2),  eps adapted per row.

    g is the gradient of the margin at x + d_k. After a success eps becomes eps * (1 - gamma_k), and at most
    the distance of the nearest success. After a failure it becomes eps * (1 + gamma_k). Before the first
    success of a row, eps is also at least ||d_k|| + |margin| / ||g||_q, 1/p + 1/q = 1: the distance of the
    boundary if the model were linear. The paper takes this estimate alone; then eps may stop growing on a row
    where two wrong classes compete. a_k and gamma_k fall as a cosine.

    Args:
        oracle: answers with margin [B], logits [B, K] and input gradient [B, C, H, W]; remembers the closest
            success.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm and box; its radius is not used: each row has its own.
        steps: gradient evaluations, >= 1; cost = `steps` forward and backward passes, and one forward pass
            for the final point.
        step_size: a_0, l2 length of the first step in pixel units whatever the norm, > 0; None means 10 for
            linf, else 1.
        step_size_final: a at the end, > 0; None means a_0 / 100.
        gamma: relative change of eps at the start, in (0, 1).
        gamma_final: relative change of eps at the end, in (0, gamma].

    Returns:
        x_adv [B, C, H, W], detached, in the box: where the oracle remembers points the closest success of
        each row, or x, else the last point.

    Raises:
        ValueError: steps < 1, step_size <= 0, step_size_final <= 0, gamma or gamma_final out of range.

    Source: Pintor et al., NeurIPS 2021, arXiv:2102.12827, Algorithm 1.
    """
    if step_size is None:
        step_size = _FIRST_STEP[ball.norm]
    if step_size_final is None:
        step_size_final = step_size / 100
    first, last = ball.check_step(steps, step_size), step_size_final
    if not last > 0:
        raise ValueError(f"step_size_final must be > 0, got {last}")
    if not 0 < gamma_final <= gamma < 1:
        raise ValueError(
            f"need 0 < gamma_final <= gamma < 1, got gamma_final {gamma_final} and gamma {gamma}"
        )
    x_adv, eps = x, x.new_zeros(len(x))
    closest = torch.full_like(eps, math.inf)
    farthest = length(torch.maximum(x - ball.low, ball.high - x), ball.norm)
    for k in range(steps):
        share = (1 + math.cos(math.pi * k / steps)) / 2
        a, g = last + (first - last) * share, gamma_final + (gamma - gamma_final) * share
        margin, logits, grad = oracle.gradient(x_adv, "margin")
        hit, size = oracle.hit(logits), length(x_adv - x, ball.norm)
        closest = torch.where(hit, torch.minimum(closest, size), closest)
        border = margin.abs() / dual_length(grad, ball.norm).clamp_min(_TINY)
        wider = eps * (1 + g)
        wider = torch.where(torch.isfinite(closest), wider, torch.maximum(size + border, wider))
        eps = torch.where(hit, torch.minimum(eps * (1 - g), closest), wider)
        eps = torch.minimum(eps.nan_to_num(math.inf), farthest)  # a NaN logit must not become a NaN pixel
        x, x_adv, grad, eps, closest, farthest = oracle.compact(x, x_adv, grad, eps, closest, farthest)
        x_adv = _project(x, x_adv + a * Ball("l2", 0.0).steepest(grad), eps, ball)
    return oracle.result(x_adv)


def _project(x: Tensor, z: Tensor, eps: Tensor, ball: Ball) -> Tensor:
    """clip(x + u), u the nearest to d = z - x with ||u||_p <= eps; x, z [B, C, H, W], eps [B] pixel units.

    l1: u = sign(d) max(|d| - t, 0) with t = (sum of the r largest |d| - eps) / r. r is the largest number for
    which the r-th largest |d| exceeds t.

    Source: Duchi et al., ICML 2008.
    """
    d, radius = (z - x).flatten(1), eps[:, None]
    if ball.norm == "linf":
        d = torch.minimum(torch.maximum(d, -radius), radius)
    elif ball.norm == "l2":
        d = d * (radius / torch.linalg.vector_norm(d, dim=1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)
    else:
        size = d.abs().sort(1, descending=True).values
        excess = size.cumsum(1) - radius
        rank = torch.arange(1, d.shape[1] + 1, device=d.device)
        count = (size * rank > excess).sum(1, keepdim=True).clamp_min(1)
        t = (excess.gather(1, count - 1) / count).clamp_min(0)
        d = d.sign() * (d.abs() - t).clamp_min(0)
    return (x + d.reshape(x.shape)).clamp(ball.low, ball.high)
