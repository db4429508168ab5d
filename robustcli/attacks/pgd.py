"""Projected gradient ascent.

`pgd` has more than 50 lines: all but a dozen are its documentation.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.geometry import Ball, Start
from robustcli.core.moves import Ascend
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks


@attacks.register(
    "pgd",
    kind="fixed",
    norms=("linf", "l2", "l1", "l0"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: given["restarts"] * (2 * given["steps"] + 1),
    use="training, and validation during training",
    deterministic=False,
)
def pgd(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] | None = None,
    start: Start = "uniform",
    start_scale: Annotated[float, Gt(0)] = 1.0,
    clip: bool = True,
    restarts: Annotated[int, Ge(1)] = 1,
    loss: Literal["ce", "margin"] | None = None,
) -> Tensor:
    """Projected gradient ascent:  x_{k+1} = P(x_k + a * steepest(grad_x loss_k)),  x_0 random in the ball.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W]; holds labels, loss and
            one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1] (8/255, never 8).
        steps: gradient evaluations, >= 1; cost = `steps` forward and backward passes per restart.
        step_size: a, pixel units, > 0; None means 2.5 * radius / steps, or four times the box under
            l0, where it is what the pixel of the largest gradient moves before the projection.
        start: "uniform" in the ball, "gaussian", "bernoulli" (+-start_scale * eps per pixel; linf only) or
            "zero". A loss that is 0 at the clean point ("kl") needs a start away from it.
        start_scale: factor on the start noise, > 0: uniform in the ball of radius start_scale * eps, or the
            standard deviation in pixel units.
        clip: project on the ball after each step; false keeps only the pixel box (N-FGSM), and such points
            are no valid attack.
        restarts: independent random starts, >= 1; the worst point of all is kept per row.
        loss: which loss to ascend; None means the caller's.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball` around x. Success is not claimed here: `evaluation.judge`
        decides.

    Raises:
        ValueError: steps < 1, restarts < 1, step_size <= 0, start_scale <= 0, or start "bernoulli" outside
        linf.

    Source: Madry et al., ICLR 2018, arXiv:1706.06083. FGSM-RS: Wong et al., ICLR 2020, arXiv:2001.03994.
        l0: PGD_0 of Croce & Hein, ICCV 2019, arXiv:1909.05040, whose step has l1 length 470.
        N-FGSM: de Jorge et al., NeurIPS 2022, arXiv:2202.01181.
    """
    a = ball.check_step(steps, step_size)
    if restarts < 1 or not start_scale > 0:
        raise ValueError(f"restarts must be >= 1 and start_scale > 0, got {restarts} and {start_scale}")
    ascend = Ascend(ball, a, clip)
    for restart in range(restarts):
        x_adv = ball.start(x, start, oracle.rng.restart(restart), scale=start_scale, clip=clip)
        for _ in range(steps):
            x_adv = oracle.step(x_adv, ascend, x, loss=loss)
            x, x_adv = oracle.compact(x, x_adv)  # rows already broken leave; in training none does
        if restarts > 1:
            oracle.score(x_adv)
            x, x_adv = oracle.compact(x, x_adv)
    return oracle.result(x_adv)
