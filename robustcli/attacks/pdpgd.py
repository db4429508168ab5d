"""Primal-dual proximal gradient descent.

`pdpgd` has more than 50 lines: half are its documentation, and the rest is one loop over what the paper
updates together.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from robustcli.core.geometry import Ball, Norm, column
from robustcli.core.oracle import Oracle
from robustcli.core.proximal import shrink
from robustcli.registry import attacks

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8
_FLOOR: dict[Norm, float] = {"linf": 0.0, "l2": 0.0, "l1": 0.1}
_LEAST_RATIO = 1e-6  # of the two weights
_RANGE = (math.log(_LEAST_RATIO), -math.log(_LEAST_RATIO))


@attacks.register(
    "pdpgd",
    kind="minimal",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="fp32",
    passes=lambda given, classes, norm: 2 * given["steps"] + 1,
    use="small distances with many steps, under l1 above all",
    deterministic=True,
)
def pdpgd(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 500,
    step_size: Annotated[float, Gt(0)] = 0.1,
    step_decay: Annotated[float, Gt(0)] = 0.01,
    ratio: Annotated[float, Gt(0)] = 0.01,
    dual_step: Annotated[float, Gt(0)] = 0.1,
    dual_decay: Annotated[float, Gt(0)] = 0.1,
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.9,
    floor: Annotated[float, Ge(0), Le(1)] | None = None,
) -> Tensor:
    """min_d max_w  w_0 ||d||_p + w_1 log(1 + exp(-margin(x + d))),  w_0 + w_1 = 1, w >= 0.

    d takes a step of Adam on the second term, is cut by the box, and then shrinks by the proximal operator of
    the first term in the metric of Adam (`core.proximal`). w_1 / w_0 grows by a factor after a failure and
    falls by it after a success. d sees a moving average of w.

    Args:
        oracle: answers with margin [B], logits [B, K] and input gradient [B, C, H, W]; remembers the closest
            success.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm and box; its radius is not used.
        steps: gradient evaluations, >= 1; cost = `steps` forward and backward passes, and one forward pass
            for the final point.
        step_size: of Adam, pixel units, > 0.
        step_decay: factor on it at the end, reached exponentially, > 0.
        ratio: w_0 / w_1 at the start, > 0.
        dual_step: change of log(w_1 / w_0) in a step, > 0.
        dual_decay: factor on it at the end, reached linearly, > 0.
        smoothing: what the moving average of w keeps in a step, in [0, 1).
        floor: least entry of the metric of the proximal operator, in units of its largest, in [0, 1]; None
            means 0.1 under l1, else 0. Where the slope was always small the metric is, too, and without a
            floor one success would take back all that such pixels moved: l1 distances nearly double.

    Returns:
        x_adv [B, C, H, W], detached, in the box: where the oracle remembers points the closest success of
        each row, or x, else the last point.

    Raises:
        ValueError: steps < 1, step_size <= 0, or another parameter out of range.

    Source: Matyasko & Chau, 2021, arXiv:2106.01538, Algorithm 2. It iterates the proximal operator in a
        diagonal metric a few times; here it is exact, and the floor does what the few iterations did. Adam:
        Kingma & Ba, ICLR 2015, arXiv:1412.6980.
    """
    ball.check_step(steps, step_size)
    if floor is None:
        floor = _FLOOR[ball.norm]
    _check(step_decay, ratio, dual_step, dual_decay, smoothing, floor)
    d, m, v = (torch.zeros_like(x) for _ in range(3))
    log_ratio = x.new_full((len(x),), -math.log(ratio))  # log(w_1 / w_0)
    w = torch.sigmoid(log_ratio)  # the moving average of w_1
    for k in range(steps):
        margin, logits, grad = oracle.gradient(x + d, "margin")
        hit = oracle.hit(logits)
        x, d, m, v, log_ratio, w, margin, grad, hit = oracle.compact(
            x, d, m, v, log_ratio, w, margin, grad, hit
        )
        slope = -grad * column(torch.sigmoid(-margin), grad)
        m, v = _BETA1 * m + (1 - _BETA1) * slope, _BETA2 * v + (1 - _BETA2) * slope.square()
        a = step_size * step_decay ** (k / steps)
        metric = (v / (1 - _BETA2 ** (k + 1))).sqrt() + _TINY
        d = d - a * (m / (1 - _BETA1 ** (k + 1))) / metric
        d = (x + d).clamp(ball.low, ball.high) - x
        pull = a * (1 - w) / w.clamp_min(_LEAST_RATIO)
        metric = torch.maximum(metric, floor * column(metric.flatten(1).amax(1), metric))
        d = shrink(d.flatten(1), metric.flatten(1), pull[:, None], ball.norm).reshape(x.shape)
        late = k / max(1, steps - 1)
        change = dual_step * (1 - late * (1 - dual_decay))
        log_ratio = (log_ratio + torch.where(hit, -change, change)).clamp(*_RANGE)
        w = smoothing * w + (1 - smoothing) * torch.sigmoid(log_ratio)
    return oracle.result((x + d).clamp(ball.low, ball.high))


def _check(
    step_decay: float, ratio: float, dual_step: float, dual_decay: float, smoothing: float, floor: float
) -> None:
    """ValueError for a parameter outside its range."""
    if not min(step_decay, ratio, dual_step, dual_decay) > 0:
        raise ValueError(
            "step_decay, ratio, dual_step and dual_decay must be > 0, got "
            f"{step_decay}, {ratio}, {dual_step} and {dual_decay}"
        )
    if not (0 <= smoothing < 1 and 0 <= floor <= 1):
        raise ValueError(f"smoothing must be in [0, 1) and floor in [0, 1], got {smoothing} and {floor}")
