"""DeepFool: step to the nearest linearised decision boundary until the class changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.hyperplane import dual_length, length, to_plane
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
    index: Tensor = (
        clean.scatter(1, oracle.y[:, None], float("-inf")).topk(min(count, clean.shape[1] - 1), dim=1).indices
    )
    return index


def nearest_boundary(oracle: Oracle, x_adv: Tensor, ball: Ball, classes: Tensor) -> Boundary:
    """argmin_k |z_k - z_y| / ||grad(z_k - z_y)||_q over the classes k in `classes` int64 [R, T], linearised at x_adv; T forward and backward passes.

    In a targeted search the boundary is z_t - max_{k != t} z_k. Without a finite value or a gradient: value 0, normal 0.
    """
    best, shortest = None, x_adv.new_full((len(x_adv),), float("inf"))
    for k in classes.unbind(1):
        answer = oracle.gradient(
            x_adv, RowLoss(difference, (oracle.y, k)) if oracle.target is None else "margin"
        )
        slope = dual_length(answer.grad, ball.norm)
        live = torch.isfinite(answer.loss) & (slope > 0)
        away = torch.where(live, answer.loss.abs() / slope, float("inf"))
        if best is None:
            value, normal = torch.where(live, answer.loss, 0.0), answer.grad
            best, shortest = Boundary(value, normal, oracle.hit(answer.logits)), away
            continue
        nearer = away < shortest
        normal = torch.where(column(nearer, x_adv), answer.grad, best.normal)
        best, shortest = (
            Boundary(torch.where(nearer, answer.loss, best.value), normal, best.hit),
            torch.minimum(away, shortest),
        )
    assert best is not None  # there are at least two classes
    return best


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """Most: both walks to the last step, the lengths of both ways, the last point."""
    boundaries = min(given["classes"], classes) - 1
    return int(2 * 2 * given["steps"] * boundaries + 2 + 1)


@attacks.register(
    "deepfool",
    kind="minimal",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="fp32",
    passes=_passes,
    use="a quick rough distance",
    deterministic=True,
    keeps_best=True,
)
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
        steps: linearisations, >= 1; cost = `steps` * (min(classes, K) - 1) forward + backward passes, less once all rows are broken, and as
            many again where the box has cut a step: the exact steps inside the box are then tried too, and the nearer success counts.
        overshoot: share of the way added to cross the boundary, >= 0.
        classes: how many classes, the true one and those of the largest clean logits, are linearised, >= 2; a targeted search has one boundary.

    Returns:
        x_adv [B, C, H, W], detached, in the box; rows never broken come back as the oracle keeps them.

    Raises:
        ValueError: steps < 1, overshoot < 0 or classes < 2.

    Source: Moosavi-Dezfooli et al., CVPR 2016, arXiv:1511.04599. Unlike there, points stay in the box and the next step linearises where
        the last one ended.
    """
    if steps < 1 or not overshoot >= 0 or classes < 2:
        raise ValueError(
            f"steps must be >= 1, overshoot >= 0 and classes >= 2, got {steps}, {overshoot} and {classes}"
        )
    touched, x, found, others = _walk(
        oracle, x, ball, rivals(oracle, classes - 1), steps, overshoot, exact=False
    )
    if not touched or not oracle.alive:
        return oracle.result(found)
    x, found, others, size = oracle.compact(x, found, others, _size(oracle, x, found, ball))
    _, x, again, others, found, size = _walk(
        oracle, x, ball, others, steps, overshoot, found, size, exact=True
    )
    nearer = _size(oracle, x, again, ball) < size
    return oracle.result(torch.where(column(nearer, x), again, found))


def _size(oracle: Oracle, x: Tensor, x_adv: Tensor, ball: Ball) -> Tensor:
    """[R]: how far x_adv lies from x, infinite where it is no success; one forward pass."""
    hit = oracle.hit(oracle.logits(x_adv))
    return length(x_adv - x, ball.norm).masked_fill(~hit, float("inf"))


def _walk(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    others: Tensor,
    steps: int,
    overshoot: float,
    *carried: Tensor,
    exact: bool,
) -> tuple[Any, ...]:
    """(whether the box cut a step, x, last point, others, *carried) of the rows still in play; `carried` [R, ...] leave with their rows.

    exact: the shortest step to the plane inside the box. Else the shortest one of all, cut by the box: it moves less where most pixels that
    should move cannot, and the next linearisation takes it on.
    """
    x_adv, way, touched = x, torch.zeros_like(x), False
    free = replace(ball, low=-1e6, high=1e6)
    for _ in range(steps):
        value, normal, hit = nearest_boundary(oracle, x_adv, ball, others)
        step = to_plane(
            x_adv, normal, value.masked_fill(hit, 0.0), ball if exact else free
        )  # broken rows stay
        inside = (x + way + step).clamp(ball.low, ball.high) - x
        touched = touched or bool((inside != x + way + step - x).any())
        way = inside
        x_adv = (x + (1 + overshoot) * way).clamp(ball.low, ball.high)
        x, x_adv, way, others, *left = oracle.compact(x, x_adv, way, others, *carried)
        carried = tuple(left)
        if bool(hit.all()):
            break
    return touched, x, x_adv, others, *carried
