"""Half clean, half adversarial training."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt

from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register("mixed", inner="ce", passes=6, use="more clean accuracy for less robust accuracy")
def mixed(
    model: Classifier,
    batch: Batch,
    *,
    clean_weight: Annotated[float, Ge(0), Le(1)] = 0.5,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> LossTerms:
    """w * mean CE(f(x), y) + (1 - w) * mean CE(f(x_adv), y); cost 2K + 6 passes for K attack steps.

    Clean and attacked images go through the model in one batch, so BatchNorm sees their joint statistics.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x, x_adv and y (int64 [B]), or y_soft [B, K], are used.
        clean_weight: w, no unit, in [0, 1]; 0.5 is the mean of both.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: clean_weight outside [0, 1] or label_smoothing outside [0, 1).

    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572 (section 6);
    Kurakin et al., ICLR 2017, arXiv:1611.01236.
    """
    if not 0 <= clean_weight <= 1:
        raise ValueError(f"clean_weight must be in [0, 1], got {clean_weight}")
    clean, adversarial = model(torch.cat((batch.x, batch.x_adv))).chunk(2)
    parts = {
        "natural": mean_ce(clean, batch.y, batch.y_soft, label_smoothing),
        "adversarial": mean_ce(adversarial, batch.y, batch.y_soft, label_smoothing),
    }
    total = clean_weight * parts["natural"] + (1 - clean_weight) * parts["adversarial"]
    return LossTerms(total, {name: part.detach() for name, part in parts.items()})
