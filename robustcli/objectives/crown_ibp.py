"""Training on backward linear bounds over interval bounds of the whole ball."""

from __future__ import annotations

from torch import Tensor

from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.objectives.walked import Share, Weight, fading, over_box, summed, worst_ce
from robustcli.registry import objectives


@objectives.register(
    "crown_ibp",
    inner=None,
    passes=9,
    per_rival=3,
    held=9,
    held_per_rival=4,
    bounds=True,
    norms=("linf",),
    use="tighter bounds while the radius grows than ibp has; few classes",
)
def crown_ibp(
    model: Classifier,
    batch: Batch,
    *,
    kappa_start: Share = 1.0,
    kappa_end: Share = 0.5,
    beta_start: Share = 1.0,
    beta_end: Share = 0.0,
    warmup_reg: Weight = 0.5,
) -> LossTerms:
    """kappa * mean CE(f(x), y) + (1 - kappa) * mean CE(-m, y), m = beta m_CROWN-IBP + (1 - beta) m_IBP.

    Both m bound z_y - z_k from below over the ball, so that CE(-m, y) is an upper bound of the loss of every
    point of it. m_CROWN-IBP goes back through the network in linear bounds, with the boxes of IBP at its
    activations. kappa, BatchNorm, float32 and warmup_reg are as in `ibp`, and beta goes from beta_start to
    beta_end with the radius as kappa does. Cost 9 + 3 (K - 1) passes for K classes; 9 where beta is 0.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; a network whose operations have bounds.
        batch: x and y (int64 [B]), or y_soft [B, K], ball (linf) and ramp are used.
        kappa_start, kappa_end: weight of the clean loss at radius 0 and at the whole radius, in [0, 1].
        beta_start, beta_end: share of CROWN-IBP at radius 0 and at the whole radius, in [0, 1]; the authors
            end at 0 where the network is deep or the radius large, and at 1 elsewhere.
        warmup_reg: as in `ibp`.

    Raises:
        UnsupportedOperation: the network has an operation without bounds.

    Source: Zhang et al., ICLR 2020, arXiv:1906.06316.
    """
    walked = over_box(model, batch, batch.x, batch.ball.eps)
    kappa, beta = (fading(*ends, batch.ramp) for ends in ((kappa_start, kappa_end), (beta_start, beta_end)))

    def mixed(y: Tensor) -> Tensor:
        boxes = walked.margins(y)
        if not beta:
            return boxes
        return beta * walked.margins(y, "crown-ibp") + (1 - beta) * boxes

    parts = {
        "natural": (kappa, mean_ce(walked.logits, batch.y, batch.y_soft)),
        "bounds": (1 - kappa, worst_ce(mixed, batch)),
    }
    return summed(parts, walked, warmup_reg, batch.ramp)
