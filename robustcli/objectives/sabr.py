"""Interval bounds of a small box around an attacked image."""

from __future__ import annotations

from dataclasses import replace

from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.objectives.walked import Share, Weight, over_box, summed, worst_ce
from robustcli.registry import objectives


@objectives.register(
    "sabr",
    inner="ce",
    passes=9,
    held=5,
    bounds=True,
    norms=("linf",),
    use="accuracy and bounds for tight verifiers: a smaller box is less regularised",
)
def sabr(model: Classifier, batch: Batch, *, box: Share = 0.4, warmup_reg: Weight = 0.5) -> LossTerms:
    """mean CE(-m, y), m = IBP bounds over |z - c| <= tau, tau = box * eps; cost 2K + 9 passes for K steps.

    c is x_adv, moved into the ball of radius eps - tau around x, so that the small box lies in the ball. A
    box of 1 is `ibp` with kappa 0; 0 is adversarial training. BatchNorm normalises by the statistics of the
    clean images. All but the attack is float32.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; a network whose operations have bounds.
        batch: x, x_adv and y (int64 [B]), or y_soft [B, K], ball (linf) and ramp are used.
        box: lambda, no unit, in [0, 1]; 0.6 for MNIST at 0.3 and 0.7 for CIFAR-10 at 8/255 in the authors'
            commands.
        warmup_reg: as in `ibp`.

    Raises:
        UnsupportedOperation: the network has an operation without bounds.

    Source: Mueller et al., ICLR 2023, arXiv:2210.04871.
    """
    tau = box * batch.ball.eps
    centre = replace(batch.ball, eps=batch.ball.eps - tau).project(batch.x, batch.x_adv)
    walked = over_box(model, batch, centre, tau)
    return summed({"bounds": (1.0, worst_ce(walked.margins, batch))}, walked, warmup_reg, batch.ramp)
