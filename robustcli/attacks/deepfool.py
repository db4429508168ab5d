"""DeepFool: step to the nearest linearised decision boundary until the class changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from robustcli.core.boundary import nearest_boundary, rivals
from robustcli.core.geometry import Ball, column
from robustcli.core.hyperplane import length, to_plane
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """The most there can be: all steps of both walks, one pass for the size of each way, one last point."""
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
    ends_early=True,
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
    """x_{k+1} = clip(x + (1 + overshoot) r_{k+1}),  r_{k+1} = r_k + d_k, until the class changes.

    d_k is the shortest way from x_k to its nearest linearised boundary, without regard to the box. Where the
    box has cut such a step, a second walk takes the shortest ways inside the box. The nearer success counts.

    Args:
        oracle: answers with logits [B, K] and gradients [B, C, H, W] of logit differences.
        x: clean pixels [B, C, H, W] in [0, 1]; the search starts there.
        ball: norm and box; points may leave its radius.
        steps: linearisations, >= 1; cost = `steps` * (min(classes, K) - 1) forward and backward passes, less
            once all rows are broken, and as many again where the box has cut a step.
        overshoot: share of the way added to cross the boundary, >= 0.
        classes: how many classes are linearised, >= 2: the true one and those of the largest clean logits. A
            targeted search has one boundary.

    Returns:
        x_adv [B, C, H, W], detached, in the box; rows never broken come back as the oracle keeps them.

    Raises:
        ValueError: steps < 1, overshoot < 0 or classes < 2.

    Source: Moosavi-Dezfooli et al., CVPR 2016, arXiv:1511.04599. Unlike there, points stay in the box and the
        next step linearises where the last one ended.
    """
    if steps < 1 or not overshoot >= 0 or classes < 2:
        raise ValueError(
            f"steps must be >= 1, overshoot >= 0 and classes >= 2, got {steps}, {overshoot} and {classes}"
        )
    others = rivals(oracle, classes - 1)
    was_cut, x, x_free, others = _walk(oracle, x, ball, others, steps, overshoot, exact=False)
    if not was_cut or not oracle.alive:
        return oracle.result(x_free)
    size = _size(oracle, x, x_free, ball)
    x, x_free, others, size = oracle.compact(x, x_free, others, size)
    _, x, x_exact, _, x_free, size = _walk(
        oracle, x, ball, others, steps, overshoot, x_free, size, exact=True
    )
    nearer = _size(oracle, x, x_exact, ball) < size
    return oracle.result(torch.where(column(nearer, x), x_exact, x_free))


def _size(oracle: Oracle, x: Tensor, x_adv: Tensor, ball: Ball) -> Tensor:
    """||x_adv - x||_p [R] in pixel units, infinite where x_adv is no success; cost: one forward pass."""
    hit = oracle.hit(oracle.logits(x_adv))
    return length(x_adv - x, ball.norm).masked_fill(~hit, float("inf"))


def _walk(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    classes: Tensor,
    steps: int,
    overshoot: float,
    *carried: Tensor,
    exact: bool,
) -> tuple[Any, ...]:
    """Walk from x to the nearest boundary, which is linearised anew at each step.

    Args:
        x: clean pixels [R, C, H, W] in the box.
        ball: norm and box.
        classes: whose boundaries are linearised, int64 [R, T].
        steps, overshoot: as in `deepfool`.
        carried: further tensors [R, ...], from which the rows that leave are taken out.
        exact: true takes the shortest step inside the box. False takes the shortest step without a box, and
            lets the box cut it. Such a step may stop short of the plane; the next one goes on from there.

    Returns:
        (whether the box cut a step, x, last point, classes, *carried) of the rows still in play.
    """
    within = ball
    if not exact:
        within = replace(ball, low=-1e6, high=1e6)
    x_adv, way, was_cut = x, torch.zeros_like(x), False
    for _ in range(steps):
        value, normal, hit = nearest_boundary(oracle, x_adv, ball, classes)
        step = to_plane(x_adv, normal, value.masked_fill(hit, 0.0), within)  # broken rows stay
        boxed = (x + way + step).clamp(ball.low, ball.high) - x
        was_cut = was_cut or bool((boxed != x + way + step - x).any())
        way = boxed
        x_adv = (x + (1 + overshoot) * way).clamp(ball.low, ball.high)
        x, x_adv, way, classes, *left = oracle.compact(x, x_adv, way, classes, *carried)
        carried = tuple(left)
        if bool(hit.all()):
            break
    return was_cut, x, x_adv, classes, *carried
