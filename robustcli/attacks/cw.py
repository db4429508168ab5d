"""Carlini and Wagner's l2 attack.

`cw` has more than 50 lines: half are its documentation, and the rest is Adam inside a binary search, both as
published.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

_INNER = 0.999999  # artanh of 1 is infinite
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8


@attacks.register(
    "cw",
    kind="minimal",
    norms=("l2",),
    needs="gradient",
    precision="fp32",
    passes=lambda given, classes, norm: 2 + 2 * given["binary_search"] * given["steps"] + 1,
    use="l2 distances to compare with older papers; fmn is nearer and five times cheaper",
    deterministic=True,
)
def cw(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    binary_search: Annotated[int, Ge(1)] = 5,
    step_size: Annotated[float, Gt(0)] = 0.05,
    initial_c: Annotated[float, Gt(0)] = 1.0,
    confidence: Annotated[float, Ge(0)] = 0.0,
) -> Tensor:
    """min_w ||x_adv - x||_2^2 + c * max(z_y - max_{k != y} z_k, -confidence), by Adam.

    x_adv = low + (high - low) (tanh(w) + 1) / 2. c is searched per row: times 10 until a search succeeds,
    then halfway between the largest that failed and the smallest that did not.

    Args:
        oracle: answers with margin [B], logits [B, K] and input gradient [B, C, H, W]; remembers the closest
            success.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: the box; its radius is not used.
        steps: Adam steps for each c, >= 1; cost = steps * binary_search + 1 forward and backward passes, and
            one forward pass.
        binary_search: values of c tried per row, >= 1 (the paper: 9).
        step_size: of Adam, in units of w, > 0. The paper's 0.01 wants thousands of steps: a black or white
            pixel starts at |w| = 7.
        initial_c: the first c, > 0.
        confidence: logit margin that a success must have to stop c from growing, >= 0; the point kept is the
            closest success of any margin.

    Returns:
        x_adv [B, C, H, W], detached, in the box: where the oracle remembers points the closest success of
        each row, or x, else the last point.

    Raises:
        ValueError: steps < 1, binary_search < 1, step_size <= 0, initial_c <= 0 or confidence < 0.

    Source: Carlini & Wagner, IEEE S&P 2017, arXiv:1608.04644. Adam: Kingma & Ba, ICLR 2015, arXiv:1412.6980.
    """
    a = ball.check_step(steps, step_size)
    _check(binary_search, initial_c, confidence)
    middle, half = (ball.high + ball.low) / 2, (ball.high - ball.low) / 2
    x_adv, c = x, x.new_full((len(x),), initial_c)
    low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
    margin_0, _, grad_0 = oracle.gradient(x, "margin")  # every search starts here: one pass for all of them
    x, x_adv, c, low, high, margin_0, grad_0 = oracle.compact(x, x_adv, c, low, high, margin_0, grad_0)
    for _ in range(binary_search):
        w = torch.atanh((x - middle) / half * _INNER)
        # x up to rounding, from which Adam would make whole steps.
        x_adv = home = middle + half * torch.tanh(w)
        margin, grad = margin_0, grad_0
        m, v, won = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(c, dtype=torch.bool)
        for k in range(1, steps + 1):
            pull = grad * column(c * (margin < confidence), grad)
            slope = (2 * (x_adv - home) - pull) * half * (1 - torch.tanh(w).square())
            m, v = _BETA1 * m + (1 - _BETA1) * slope, _BETA2 * v + (1 - _BETA2) * slope.square()
            w = w - a * (m / (1 - _BETA1**k)) / ((v / (1 - _BETA2**k)).sqrt() + _TINY)
            x_adv = (middle + half * torch.tanh(w)).clamp(ball.low, ball.high)
            margin, logits, grad = oracle.gradient(x_adv, "margin")
            won = won | (oracle.hit(logits) & (margin >= confidence))
            x, x_adv, home, w, m, v, margin, grad, won, c, low, high, margin_0, grad_0 = oracle.compact(
                x, x_adv, home, w, m, v, margin, grad, won, c, low, high, margin_0, grad_0
            )
        low = torch.where(won, low, torch.maximum(low, c))
        high = torch.where(won, torch.minimum(high, c), high)
        c = torch.where(torch.isfinite(high), (low + high) / 2, c * 10)
    return oracle.result(x_adv)


def _check(binary_search: int, initial_c: float, confidence: float) -> None:
    """ValueError for a parameter outside its range."""
    if binary_search < 1:
        raise ValueError(f"binary_search must be >= 1, got {binary_search}")
    if not (initial_c > 0 and confidence >= 0):
        raise ValueError(f"need initial_c > 0 and confidence >= 0, got {initial_c} and {confidence}")
