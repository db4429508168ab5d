"""The nearest decision boundary of a model, linearised: what minimal-norm attacks step to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.hyperplane import dual_length
from robustcli.core.losses import RowLoss, difference
from robustcli.core.oracle import Oracle


class Boundary(NamedTuple):
    """value + <normal, d> = 0: a decision boundary linearised at one point per row, d the way from it.

    Args:
        value: [R], a logit difference at the point; > 0 beyond the boundary.
        normal: [R, C, H, W], the gradient of `value` at the point, in logits per pixel unit.
        hit: bool [R], whether the point is a success.
    """

    value: Tensor
    normal: Tensor
    hit: Tensor


def rivals(oracle: Oracle, count: int) -> Tensor:
    """The `count` likeliest classes other than y at the clean points: int64 [R, min(count, K - 1)].

    The likeliest comes first. In a targeted search the answer is the target alone, [R, 1].
    """
    if oracle.target is not None:
        return oracle.target[:, None]
    clean = oracle.clean()
    wrong = clean.scatter(1, oracle.y[:, None], float("-inf"))
    index: Tensor = wrong.topk(min(count, clean.shape[1] - 1), dim=1).indices
    return index


def nearest_boundary(oracle: Oracle, x_adv: Tensor, ball: Ball, classes: Tensor) -> Boundary:
    """argmin_k |z_k - z_y| / ||grad(z_k - z_y)||_q over the classes k, linearised at x_adv [R, C, H, W].

    Cost: T forward and backward passes.

    Args:
        oracle: answers with logits [R, K] and gradients [R, C, H, W] of logit differences.
        x_adv: pixels [R, C, H, W], the points of the rows in play.
        ball: its norm p, with 1/p + 1/q = 1; radius and box are not used.
        classes: k, int64 [R, T]. A targeted search reads only T: its boundary is
            z_t - max_{k != t} z_k = 0.

    Returns:
        The nearest of the T boundaries. A class whose value is not finite, or whose gradient is 0, counts as
        infinitely far. A row with no other class gets the value 0, from which `to_plane` makes no move.
    """
    nearest, shortest = None, x_adv.new_full((len(x_adv),), float("inf"))
    for k in classes.unbind(1):
        value, logits, normal = oracle.gradient(x_adv, _lead(oracle, k))
        slope = dual_length(normal, ball.norm)
        live = torch.isfinite(value) & (slope > 0)
        away = torch.where(live, value.abs() / slope, float("inf"))
        if nearest is None:
            nearest = Boundary(torch.where(live, value, 0.0), normal, oracle.hit(logits))
        else:
            nearer = away < shortest
            value = torch.where(nearer, value, nearest.value)
            normal = torch.where(column(nearer, x_adv), normal, nearest.normal)
            nearest = Boundary(value, normal, nearest.hit)
        shortest = torch.minimum(away, shortest)
    assert nearest is not None  # there are at least two classes
    return nearest


def _lead(oracle: Oracle, k: Tensor) -> RowLoss | str:
    """z_k - z_y, k int64 [R]; in a targeted search z_t - max_{k != t} z_k. It is > 0 beyond the boundary.

    The oracle turns the name "margin" into its targeted form.
    """
    if oracle.target is not None:
        return "margin"
    return RowLoss(difference, (oracle.y, k))
