"""Orthogonal projected gradient descent, against models that reject.

`orthogonal` has more than 50 lines: most are its documentation.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.apart import class_loss, crossed, evasion, guarded, off
from robustcli.core.geometry import Ball, Start
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

Projection = Literal["both", "detector", "classifier", "neither"]


@attacks.register(
    "orthogonal",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: given["restarts"] * (4 * given["steps"] + 1),
    use="guarded models: a detector whose slope is against that of the classes",
    deterministic=False,
    guarded=True,
)
def orthogonal(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    step_size: Annotated[float, Gt(0)] | None = None,
    start: Start = "uniform",
    restarts: Annotated[int, Ge(1)] = 1,
    project: Projection = "both",
) -> Tensor:
    """x_{k+1} = P(x_k + a * steepest(d)),  d = f - proj_g(f) until the class is wrong, then g - proj_f(g).

    f is the gradient of cross-entropy of the class logits, g that of -(z_reject - max_k z_k). So a step for a
    wrong class leaves the detector's score alone, and a step for acceptance leaves the class alone, both to
    first order. A class is wrong when it leads by 0.05 logits. On a model that never rejects every step goes
    along f: that is PGD.

    Args:
        oracle: answers with raw logits [B, K + 1] and input gradients [B, C, H, W]; holds labels and one
            random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        steps: >= 1; each costs two forward and two backward passes.
        step_size: a, pixel units, > 0; None means 2.5 * radius / steps.
        start: "uniform" in the ball, "gaussian", "bernoulli" (linf only) or "zero".
        restarts: independent random starts, >= 1; the worst point of all is kept per row.
        project: which gradient loses its part along the other: that of the "detector" (g), of the
            "classifier" (f), "both" or "neither" (selective descent).

    Returns:
        x_adv [B, C, H, W], detached, inside `ball` around x.

    Raises:
        ValueError: steps < 1, restarts < 1, step_size <= 0, or start "bernoulli" outside linf.

    Source: Bryniarski et al., ICLR 2022, arXiv:2106.15023. The authors keep the wrong point of the lowest
        score; here the oracle keeps a wrong and accepted one first, then that of the largest joint loss.
    """
    a = ball.check_step(steps, step_size)
    if restarts < 1:
        raise ValueError(f"restarts must be >= 1, got {restarts}")
    for restart in range(restarts):
        x_adv = ball.start(x, start, oracle.rng.restart(restart))
        for _ in range(steps):
            direction = ball.steepest(_direction(oracle, x_adv, project), x_adv)
            x_adv = ball.project(x, x_adv + a * direction)
            x, x_adv = oracle.compact(x, x_adv)
        if restarts > 1:
            oracle.score(x_adv)
            x, x_adv = oracle.compact(x, x_adv)
    return oracle.result(x_adv)


def _direction(oracle: Oracle, x_adv: Tensor, project: Projection) -> Tensor:
    """d [R, C, H, W], before `Ball.steepest` makes a step of it."""
    towards = oracle.gradient(x_adv, class_loss(oracle), raw=True)
    if not guarded(oracle) or not len(x_adv):
        return towards.grad
    hiding = oracle.gradient(x_adv, evasion(oracle), raw=True, scored=False).grad
    f, g = towards.grad, hiding
    if project in ("both", "classifier"):
        f = off(towards.grad, hiding)
    if project in ("both", "detector"):
        g = off(hiding, towards.grad)
    return torch.where(crossed(oracle, towards.logits)[:, None, None, None], g, f)
