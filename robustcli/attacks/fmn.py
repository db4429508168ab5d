"""Fast minimum-norm attack."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from robustcli.core.geometry import Ball, Norm
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

_ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}
_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": math.inf}
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
    keeps_best=True,
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
    """min ||d||_p with x + d misclassified:  d_{k+1} = P_eps(d_k + a_k g / ||g||_2),  eps * (1 - gamma_k) after a success, else eps * (1 + gamma_k).

    Until its first success a row's eps is also at least ||d|| + |margin| / ||g||_q, q dual to p: where the boundary would be if the
    model were linear. The paper takes that estimate alone, and rows between two wrong classes may then never grow past it.
    a_k and gamma_k fall as a cosine.

    Args:
        oracle: answers with margin [B], logits [B, K] and input gradient [B, C, H, W]; remembers the closest success.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm and box; its radius is not used: each row has its own.
        steps: gradient evaluations, >= 1; cost = `steps` forward + backward passes and one forward for the final point.
        step_size: a_0, l2 length of the first step in pixel units whatever the norm, > 0; None means 10 for linf, else 1.
        step_size_final: a at the end, > 0; None means a_0 / 100.
        gamma: relative change of eps at the start, in (0, 1).
        gamma_final: relative change of eps at the end, in (0, gamma].

    Returns:
        x_adv [B, C, H, W], detached, in the box: the closest success of each row, or x, where the oracle tracks; else the last point.

    Raises:
        ValueError: steps < 1, step_size <= 0, step_size_final <= 0, gamma or gamma_final out of range.

    Source: Pintor et al., NeurIPS 2021, arXiv:2102.12827, Algorithm 1.
    """
    # A linf step has to move every pixel: l2 length 1 shared by 784 pixels is 0.04 each, too little to reach eps 0.3 in time.
    first = ball.check_step(steps, (10.0 if ball.norm == "linf" else 1.0) if step_size is None else step_size)
    last = first / 100 if step_size_final is None else step_size_final
    if not last > 0:
        raise ValueError(f"step_size_final must be > 0, got {last}")
    if not 0 < gamma_final <= gamma < 1:
        raise ValueError(
            f"need 0 < gamma_final <= gamma < 1, got gamma_final {gamma_final} and gamma {gamma}"
        )
    x_adv, eps = x, x.new_zeros(len(x))
    closest, farthest = (
        torch.full_like(eps, math.inf),
        _length(torch.maximum(x - ball.low, ball.high - x), ball.norm),
    )
    for k in range(steps):
        share = (1 + math.cos(math.pi * k / steps)) / 2
        a, g = last + (first - last) * share, gamma_final + (gamma - gamma_final) * share
        margin, logits, grad = oracle.gradient(x_adv, "margin")
        hit, length = oracle.hit(logits), _length(x_adv - x, ball.norm)
        closest = torch.where(hit, torch.minimum(closest, length), closest)
        border = margin.abs() / torch.linalg.vector_norm(
            grad.flatten(1), ord=_DUAL[ball.norm], dim=1
        ).clamp_min(_TINY)
        wider = torch.where(
            torch.isfinite(closest), eps * (1 + g), torch.maximum(length + border, eps * (1 + g))
        )
        eps = torch.where(hit, torch.minimum(eps * (1 - g), closest), wider)
        eps = torch.minimum(eps.nan_to_num(math.inf), farthest)  # a NaN logit must not become a NaN pixel
        x, x_adv, grad, eps, closest, farthest = oracle.compact(x, x_adv, grad, eps, closest, farthest)
        x_adv = _project(x, x_adv + a * Ball("l2", 0.0).steepest(grad), eps, ball)
    return oracle.result(x_adv)


def _length(d: Tensor, norm: Norm) -> Tensor:
    """||d||_p per row [B]."""
    length: Tensor = torch.linalg.vector_norm(d.flatten(1), ord=_ORDER[norm], dim=1)
    return length


def _project(x: Tensor, z: Tensor, eps: Tensor, ball: Ball) -> Tensor:
    """The nearest point to z with ||z - x||_p <= eps, a radius [B] for each row, then the box.

    l1: sign(d) max(|d| - t, 0), t = (sum of the r largest |d| - eps) / r, r the largest with |d|_(r) > t. Source: Duchi et al., ICML 2008.
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
