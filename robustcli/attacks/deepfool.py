"""DeepFool: step to the nearest linearised decision boundary until the class changes."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.hyperplane import dual_length, to_plane
from robustcli.core.losses import RowLoss, difference
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks


class Boundary(NamedTuple):
    """A decision boundary linearised at a point: value [R] (> 0 beyond it) and normal [R, C, H, W]; `hit` [R]: the point is a success."""

    value: Tensor
    normal: Tensor
    hit: Tensor


def rivals(oracle: Oracle, count: int) -> Tensor:
    """The `count` classes other than y with the largest clean logits, int64 [R, min(count, K - 1)]; of a targeted search the target alone."""
    if oracle.target is not None:
        return oracle.target[:, None]
    clean = oracle.clean()
    index: Tensor = clean.scatter(1, oracle.y[:, None], float("-inf")).topk(min(count, clean.shape[1] - 1), dim=1).indices
    return index


def nearest_boundary(oracle: Oracle, x_adv: Tensor, ball: Ball, classes: Tensor) -> Boundary:
    """argmin_k |z_k - z_y| / ||grad(z_k - z_y)||_q over the classes k in `classes` int64 [R, T], linearised at x_adv; T forward and backward passes.

    In a targeted search the boundary is z_t - max_{k != t} z_k. Without a finite value or a gradient: value 0, normal 0.
    """
    best, shortest = None, x_adv.new_full((len(x_adv),), float("inf"))
    for k in classes.unbind(1):
        answer = oracle.gradient(x_adv, RowLoss(difference, (oracle.y, k)) if oracle.target is None else "margin")
        slope = dual_length(answer.grad, ball.norm)
        live = torch.isfinite(answer.loss) & (slope > 0)
        away = torch.where(live, answer.loss.abs() / slope, float("inf"))
        if best is None:
            value, normal = torch.where(live, answer.loss, 0.0), answer.grad
            best, shortest = Boundary(value, normal, oracle.hit(answer.logits)), away
            continue
        nearer = away < shortest
        normal = torch.where(column(nearer, x_adv), answer.grad, best.normal)
        best, shortest = Boundary(torch.where(nearer, answer.loss, best.value), normal, best.hit), torch.minimum(away, shortest)
    assert best is not None  # there are at least two classes
    return best


@attacks.register("deepfool", kind="minimal", norms=("linf", "l2", "l1"), needs="gradient", deterministic=True, keeps_best=True)
def deepfool(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 50,
    overshoot: Annotated[float, Ge(0)] = 0.02,
    classes: Annotated[int, Ge(2)] = 10,
) -> Tensor:
    """x_{k+1} = clip(x + (1 + overshoot) r_{k+1}),  r_{k+1} = r_k + (shortest way from x_k to its nearest linearised boundary), until the class changes.

    Args:
        oracle: answers with logits [B, K] and gradients [B, C, H, W] of logit differences.
        x: clean pixels [B, C, H, W] in [0, 1]; the search starts there.
        ball: norm and box; points may leave its radius.
        steps: linearisations, >= 1; cost = `steps` * (min(classes, K) - 1) forward + backward passes, less once all rows are broken.
        overshoot: share of the way added to cross the boundary, >= 0.
        classes: how many classes, the true one and those of the largest clean logits, are linearised, >= 2; a targeted search has one boundary.

    Returns:
        x_adv [B, C, H, W], detached, in the box; rows never broken come back as the oracle keeps them.

    Raises:
        ValueError: steps < 1, overshoot < 0 or classes < 2.

    Source: Moosavi-Dezfooli et al., CVPR 2016, arXiv:1511.04599. Unlike there, a step respects the box and the next one linearises where it ended.
    """
    if steps < 1 or not overshoot >= 0 or classes < 2:
        raise ValueError(f"steps must be >= 1, overshoot >= 0 and classes >= 2, got {steps}, {overshoot} and {classes}")
    x_adv, way, others = x, torch.zeros_like(x), rivals(oracle, classes - 1)
    for _ in range(steps):
        value, normal, hit = nearest_boundary(oracle, x_adv, ball, others)
        way = way + to_plane(x_adv, normal, value.masked_fill(hit, 0.0), ball)  # broken rows stay
        x_adv = (x + (1 + overshoot) * way).clamp(ball.low, ball.high)
        x, x_adv, way, others = oracle.compact(x, x_adv, way, others)
        if bool(hit.all()):
            break
    return oracle.result(x_adv)
