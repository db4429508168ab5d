"""PGD adversarial training."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "madry",
    inner="ce",
    passes=3,
    use="the plain min-max problem; with one-step attacks also FGSM-RS and N-FGSM",
)
def madry(
    model: Classifier, batch: Batch, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
) -> LossTerms:
    """mean CE(f(x_adv), y), x_adv = argmax over the ball of CE; cost 2K + 3 passes for K attack steps.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x_adv and y (int64 [B]), or y_soft [B, K], are used.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: label_smoothing outside [0, 1).

    Source: Madry et al., ICLR 2018, arXiv:1706.06083. With another attack also FGSM-RS (arXiv:2001.03994) and
    N-FGSM (arXiv:2202.01181).
    """
    loss = mean_ce(model(batch.x_adv), batch.y, batch.y_soft, label_smoothing)
    return LossTerms(loss, {"adversarial": loss.detach()})
