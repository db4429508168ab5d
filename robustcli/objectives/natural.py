"""Plain training: the baseline that robust training is compared with."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "natural", inner=None, passes=3, use="no attack: the baseline that every robust model is compared with"
)
def natural(
    model: Classifier, batch: Batch, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
) -> LossTerms:
    """mean CE(f(x), y): no attack; cost 3 passes (forward, input gradient, weight gradient).

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x and y (int64 [B]), or y_soft [B, K], are used.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: label_smoothing outside [0, 1).

    Source: empirical risk minimisation; smoothing: Szegedy et al., CVPR 2016, arXiv:1512.00567.
    """
    loss = mean_ce(model(batch.x), batch.y, batch.y_soft, label_smoothing)
    return LossTerms(loss, {"natural": loss.detach()})
