"""Accuracy on clean images, and the same answer around them."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from robustcli.core.losses import kl_rows, mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "trades",
    inner="kl",
    passes=7,
    use="a dial between clean and robust accuracy; the attack ascends the KL and must not start at the image",
)
def trades(
    model: Classifier,
    batch: Batch,
    *,
    beta: Annotated[float, Ge(0)] = 6.0,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> LossTerms:
    """mean CE(f(x), y) + beta * mean KL(f(x) || f(x_adv)); cost 2K + 7 passes for K attack steps.

    Gradients run through both terms. x_adv ascends the same KL, which is 0 with gradient 0 at x. So the
    adversary needs a start away from x, such as
    `{name: pgd, steps: 10, step_size: 2/255, start: gaussian, start_scale: 0.001}`. Clean and attacked images
    are two forward passes with batch statistics of their own, as in the authors' code. The seventh pass gives
    the attack the clean logits in eval mode.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x, x_adv and y (int64 [B]), or y_soft [B, K], are used; mixed labels change the first term
            only.
        beta: weight of the robust term, no unit, >= 0; 6 on CIFAR-10, 1 on MNIST. 0 is `natural`.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1); first term only.

    Raises:
        ValueError: beta < 0 or label_smoothing outside [0, 1).

    Source: Zhang et al., ICML 2019, arXiv:1901.08573, Algorithm 1.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    clean, adversarial = model(batch.x), model(batch.x_adv)
    natural = mean_ce(clean, batch.y, batch.y_soft, label_smoothing)
    robust = kl_rows(adversarial, clean).mean()
    return LossTerms(natural + beta * robust, {"natural": natural.detach(), "robust": robust.detach()})
