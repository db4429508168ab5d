"""Fast gradient sign method."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks


@attacks.register(
    "fgsm",
    kind="fixed",
    norms=("linf", "l2", "l1", "l0"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: 3,
    use="a first look; never a robustness number",
    deterministic=True,
    starts_at_clean=True,
)
def fgsm(oracle: Oracle, x: Tensor, ball: Ball, *, loss: Literal["ce", "margin"] | None = None) -> Tensor:
    """x_adv = P(x + eps * steepest(grad_x loss)): one step to the border of the ball.

    l0: the pixels that win most on the linearised loss go to the border of the box.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W].
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        loss: which loss to ascend; None means the caller's.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`; cost: one forward and one backward pass.

    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    grad = oracle.gradient(x, loss).grad
    return oracle.result(ball.project(x, x + ball.reach * ball.steepest(grad, x)))
