"""Block shuffle and rotation: the gradient that shuffled images agree on.

`bsr` has more than 50 lines: most are its documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.attacks.transforms import Transforms, views
from robustcli.attacks.transforms import copies as copies_of
from robustcli.core.blocks import shuffled_and_turned
from robustcli.core.geometry import Ball
from robustcli.core.moves import unit_mean
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.views import View, gradient_over
from robustcli.registry import attacks


@attacks.register(
    "bsr",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: (
        2 * given["steps"] * given["copies"] * copies_of(given["transforms"]) + 1
    ),
    use="images that are to fool another model",
    deterministic=False,
    starts_at_clean=True,
    for_others=True,
)
def bsr(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] | None = None,
    decay: Annotated[float, Ge(0)] = 1.0,
    copies: Annotated[int, Ge(1)] = 20,
    blocks: Annotated[int, Ge(1)] = 2,
    angle: Annotated[float, Ge(0), Le(180)] = 24.0,
    transforms: Transforms = (),
    loss: Literal["ce", "margin"] | None = None,
) -> Tensor:
    """MI-FGSM, whose gradient is mean_i grad_x loss(T_i(x)): T_i shuffles the blocks of x and turns each.

    Networks look at different places of one image. A shuffled image leaves its network no place to trust, and
    what still fools it fools others too. x_0 = x. The T_i are drawn anew in each step, for each row.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W]; holds one random stream
            per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        steps: moves, >= 1; cost = `steps` * `copies` forward and backward passes.
        step_size: a, pixel units, > 0; None means radius / steps.
        decay: share of the old direction that is kept, >= 0.
        copies: shuffled images whose gradients are averaged in each step, >= 1.
        blocks: along each axis, >= 1; 1 only turns the image.
        angle: the largest turn of a block, degrees in [0, 180].
        transforms: more that happens to a copy before its blocks are shuffled (docs/attacks.md).
        loss: which loss to ascend; None means the caller's.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`. Only the last point is met: a shuffled one is never
        returned.

    Raises:
        ValueError: steps < 1, step_size <= 0, decay < 0, copies < 1, blocks < 1, or angle outside [0, 180].

    Source: Wang et al., CVPR 2024, arXiv:2308.10299, Algorithm 1.
    """
    a = ball.check_step(steps, step_size)
    if step_size is None:
        a = ball.eps / steps
    if not (decay >= 0 and copies >= 1 and blocks >= 1 and 0 <= angle <= 180):
        raise ValueError(
            "need decay >= 0, copies >= 1, blocks >= 1 and 0 <= angle <= 180,"
            f" got {decay}, {copies}, {blocks} and {angle}"
        )
    each = views(transforms) or [View(_itself)]
    seen = [View(partial(_pieces, view.show, blocks, angle)) for view in each] * copies
    x_adv, g = x, torch.zeros_like(x)
    for _ in range(steps):
        grad = gradient_over(oracle, x_adv, seen, loss)
        g = decay * g + unit_mean(grad)
        x_adv = ball.project(x, x_adv + a * ball.steepest(g, x_adv))
        x, x_adv, g = oracle.compact(x, x_adv, g)
    return oracle.result(x_adv)


def _pieces(
    show: Callable[[Tensor, RowRandom], Tensor], blocks: int, angle: float, x: Tensor, rng: RowRandom
) -> Tensor:
    """show(x) in shuffled and turned blocks, [R, C, H, W]."""
    return shuffled_and_turned(show(x, rng), rng, blocks, angle)


def _itself(x: Tensor, rng: RowRandom) -> Tensor:  # noqa: ARG001 - a view's arguments
    return x
