"""Adversarial training and interval bounds, as two tasks."""

from __future__ import annotations

from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.objectives.walked import Share, Weight, over_box, summed, worst_ce
from robustcli.registry import objectives


@objectives.register(
    "mtl_ibp",
    inner="ce",
    passes=12,
    held=6,
    bounds=True,
    norms=("linf",),
    use="a dial between accuracy and provability: small alpha for tight verifiers, 1 for IBP",
)
def mtl_ibp(model: Classifier, batch: Batch, *, alpha: Share = 0.5, warmup_reg: Weight = 0.5) -> LossTerms:
    """(1 - alpha) * mean CE(f(x_adv), y) + alpha * mean CE(-m, y), m as in `ibp`; cost 2K + 12 passes.

    K is the number of attack steps. Attack and bounds have one radius. BatchNorm normalises the attacked
    images by their own statistics, and the bounds by those of the clean ones. The bounds are float32; the
    pass over x_adv has the precision of training.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; a network whose operations have bounds.
        batch: x, x_adv and y (int64 [B]), or y_soft [B, K], ball (linf) and ramp are used.
        alpha: no unit, in [0, 1]; 0.5 for MNIST at 0.3 and 0.6 for CIFAR-10 at 8/255 in CTBench.
        warmup_reg: as in `ibp`.

    Raises:
        UnsupportedOperation: the network has an operation without bounds.

    Source: De Palma et al., ICLR 2024, arXiv:2305.13991.
    """
    walked = over_box(model, batch, batch.x, batch.ball.eps)
    parts = {
        "adversarial": (1 - alpha, mean_ce(model(batch.x_adv), batch.y, batch.y_soft)),
        "bounds": (alpha, worst_ce(walked.margins, batch)),
    }
    return summed(parts, walked, warmup_reg, batch.ramp)
