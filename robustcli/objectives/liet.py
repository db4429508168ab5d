"""One-step training that does not collapse: random labels, and one answer along the way of the attack."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional as F

from robustcli.core.losses import mean_ce, wide
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "liet",
    inner="ce",
    passes=6,
    use="one attack step, also with many classes; with the attack `class_start`",
)
def liet(
    model: Classifier,
    batch: Batch,
    *,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.6,
    weight: Annotated[float, Ge(0)] = 100.0,
) -> LossTerms:
    """mean CE(f(x_adv), q) + weight * t * mean JS(f(x_0), f(x_adv)),  q = (1 - s) label + s r.

    x_0 is where the attack began, t the share of the run that is done, and r random over the classes without
    the label's, drawn for each image and epoch. Cost: 2K + 6 passes for K attack steps. Gradients run through
    both answers. They are two forward passes with batch statistics of their own. The attack ascends the
    cross-entropy of the label.

    Any attack goes with it. An attack without a gradient, and the free step, begin at the clean image.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x_start, x_adv, progress, rng and y (int64 [B]), or y_soft [B, K], are used.
        label_smoothing: s in [0, 1), the share of the label that goes to other classes; the authors' 0.6 for
            10 and 200 classes, 0.8 for 100.
        weight: of the Jensen-Shannon term at the end of the run, no unit, >= 0; the authors' 100, and 200 for
            100 classes. With 0 its pass is saved.

    Raises:
        ValueError: label_smoothing outside [0, 1) or weight < 0.

    Source: Pan et al., ICCV 2025 (LIET), and FastAT Benchmark, arXiv:2604.22853; averaged weights belong to
        it (the hook `ema` with decay 0.9995).
    """
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    adversarial = model(batch.x_adv)
    labels = smoothed_at_random(batch, adversarial.shape[1], label_smoothing)
    loss = mean_ce(adversarial, batch.y, labels)
    parts = {"adversarial": loss.detach()}
    if weight > 0:
        begun = model(batch.x if batch.x_start is None else batch.x_start)
        apart = js_rows(begun, adversarial).mean()
        loss, parts["divergence"] = loss + weight * batch.progress * apart, apart.detach()
    return LossTerms(loss, parts)


def js_rows(logits: Tensor, other: Tensor) -> Tensor:
    """JS(p, q) = (KL(p || m) + KL(q || m)) / 2 per row, m = (p + q) / 2, p and q the softmax of the two.

    Range [0, log 2], in nats. Both arguments get a gradient. Source: Lin, IEEE Trans. Inf. Theory 37, 1991.
    """
    log_p, log_q = wide(logits).log_softmax(1), wide(other).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    from_p = F.kl_div(log_m, log_p, reduction="none", log_target=True)
    from_q = F.kl_div(log_m, log_q, reduction="none", log_target=True)
    return (from_p + from_q).sum(1) / 2


def smoothed_at_random(batch: Batch, classes: int, share: float) -> Tensor:
    """q = (1 - share) label + share * u / sum(u), u uniform in [0, 1), 0 where the label is not: [B, K].

    A mixed label that has all classes stays as it is.

    Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {share}")
    label = batch.y_soft
    if label is None:
        label = F.one_hot(batch.y, classes).float()
    u = batch.rng.stream("labels").uniform((classes,)) * (label == 0)
    total = u.sum(1, keepdim=True)
    mixed = (1 - share) * label + share * u / total.clamp_min(torch.finfo(u.dtype).tiny)
    return torch.where(total > 0, mixed, label)
