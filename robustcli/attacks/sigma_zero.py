"""sigma-zero: the fewest pixels that change the answer.

`sigma_zero` has more than 50 lines: half are its documentation, and its one loop is the published algorithm.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8
_LEAST_STEP = 0.1  # of the first step size, at the end


@attacks.register(
    "sigma_zero",
    kind="minimal",
    norms=("l0",),
    needs="gradient",
    precision="fp32",
    passes=lambda given, classes, norm: 2 * given["steps"] + 1,
    use="l0: the fewest pixels; the strongest attack here on a few of them",
    deterministic=True,
)
def sigma_zero(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 200,
    step_size: Annotated[float, Gt(0)] = 1.0,
    sigma: Annotated[float, Gt(0)] = 1e-3,
    threshold: Annotated[float, Ge(0), Le(1)] = 0.3,
    threshold_step: Annotated[float, Gt(0)] = 0.01,
) -> Tensor:
    """min_d  max(-margin(x + d), 0) + (1 / P) sum_p s_p / (s_p + sigma),  s_p = sum_c d_pc^2.

    The sum is a smooth count of the P pixels that changed. The gradient is divided by its largest entry, and
    d takes a step of Adam. After the box, pixels whose largest channel moved less than t become clean again.
    t grows after a success and falls after a failure.

    The paper counts entries of the tensor; here all channels of a pixel count once, as in an l0 ball. On grey
    images both are the same.

    Args:
        oracle: answers with margin [B], logits [B, K] and input gradient [B, C, H, W]; remembers the closest
            success.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: the box; its radius is not used.
        steps: gradient evaluations, >= 1 (the paper: 1000); cost = `steps` forward and backward passes, and
            one forward pass for the final point.
        step_size: of Adam at the start, pixel units, > 0; it falls as a cosine to a tenth.
        sigma: how far a pixel moves before it counts as one, squared pixel units, > 0.
        threshold: t at the start, pixel units, in [0, 1].
        threshold_step: change of t in units of the step size, > 0.

    Returns:
        x_adv [B, C, H, W], detached, in the box: where the oracle remembers points the closest success of
        each row, or x, else the last point.

    Raises:
        ValueError: steps < 1, step_size <= 0, sigma <= 0, threshold outside [0, 1] or threshold_step <= 0.

    Source: Cina et al., ICLR 2025, arXiv:2402.01879, Algorithm 1. Adam: Kingma & Ba, ICLR 2015,
        arXiv:1412.6980.
    """
    ball.check_step(steps, step_size)
    _check(sigma, threshold, threshold_step)
    d, m, v = (torch.zeros_like(x) for _ in range(3))
    x_adv, t, pixels = x, x.new_full((len(x),), threshold), math.prod(x.shape[2:])
    for k in range(steps):
        margin, logits, grad = oracle.gradient(x_adv, "margin")
        hit = oracle.hit(logits)
        x, d, m, v, t, margin, grad, hit = oracle.compact(x, d, m, v, t, margin, grad, hit)
        spread = d.square().sum(1, keepdim=True) + sigma
        slope = 2 * sigma / pixels * d / spread.square() - grad * column(margin < 0, grad)
        slope = Ball("l0", 1.0).steepest(slope)
        m, v = _BETA1 * m + (1 - _BETA1) * slope, _BETA2 * v + (1 - _BETA2) * slope.square()
        a = step_size * _falling(max(k - 1, 0) / steps)
        d = d - a * (m / (1 - _BETA1 ** (k + 1))) / ((v / (1 - _BETA2 ** (k + 1))).sqrt() + _TINY)
        d = (x + d).clamp(ball.low, ball.high) - x
        change = threshold_step * step_size * _falling(k / steps)
        t = (t + torch.where(hit, change, -change)).clamp(0, 1)
        d = d * (d.abs().amax(1, keepdim=True) >= column(t, d))
        x_adv = torch.where((d != 0).any(1, keepdim=True), (x + d).clamp(ball.low, ball.high), x)
    return oracle.result(x_adv)


def _falling(share: float) -> float:
    """The factor on the step size after this share of the steps: a cosine from 1 to a tenth."""
    return _LEAST_STEP + (1 - _LEAST_STEP) * (1 + math.cos(math.pi * share)) / 2


def _check(sigma: float, threshold: float, threshold_step: float) -> None:
    """ValueError for a parameter outside its range."""
    if not (sigma > 0 and threshold_step > 0):
        raise ValueError(f"sigma and threshold_step must be > 0, got {sigma} and {threshold_step}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
