"""Adversarial training that cares most for images already misclassified."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from robustcli.core.losses import kl_rows, wide
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "mart", inner="ce", passes=6, use="robust accuracy first: images that are wrong when clean weigh more"
)
def mart(model: Classifier, batch: Batch, *, beta: Annotated[float, Ge(0)] = 5.0) -> LossTerms:
    """mean BCE(f(x_adv), y) + beta * mean KL(f(x) || f(x_adv)) * (1.0000001 - p(x)_y); cost 2K + 6 passes.

    BCE(z, y) = -log p_y - log(1.0001 - max_{k != y} p_k + 1e-12) with p = softmax(z) is `boosted_ce`, and K
    is the number of attack steps. Gradients run through all three factors. The authors attack in eval mode
    with `{name: pgd, steps: 10, step_size: 0.007, start: gaussian, start_scale: 0.001}`.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x, x_adv and y (int64 [B]), or y_soft [B, K], are used. For mixed labels q, BCE and p_y are
            means over y drawn from q.
        beta: weight of the second term, no unit, >= 0; 5 for ResNet-18, 6 for WideResNet.

    Raises:
        ValueError: beta < 0.

    Source: Wang et al., ICLR 2020, openreview.net/forum?id=rklOg6EFwS, and the authors' code for the
    constants.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    clean, adversarial = wide(model(batch.x)), wide(model(batch.x_adv))
    q = F.one_hot(batch.y, clean.shape[1]) if batch.y_soft is None else batch.y_soft
    q = q.to(clean.dtype)
    boosted = boosted_ce(adversarial, q).mean()
    doubt = 1.0000001 - (q * clean.softmax(1)).sum(1)
    robust = (kl_rows(adversarial, clean) * doubt).mean()
    return LossTerms(boosted + beta * robust, {"boosted": boosted.detach(), "robust": robust.detach()})


def boosted_ce(logits: Tensor, q: Tensor) -> Tensor:
    """sum_y q_y (-log p_y - log(1.0001 - max_{k != y} p_k + 1e-12)) [B], p = softmax(z).

    Args:
        logits: z [B, K].
        q: label distributions [B, K].
    """
    log_p = logits.log_softmax(1)
    first, second = log_p.exp().topk(2, dim=1).values.split(1, dim=1)
    top = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    rival = torch.where(top, second, first)
    return -(q * (log_p + (1.0001 - rival + 1e-12).log())).sum(1)
