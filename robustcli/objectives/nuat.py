"""Adversarial training with one attack step and a nuclear norm."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from robustcli.core.losses import mean_ce, nuclear_rows
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register("nuat", inner="nuclear", passes=7, use="one or two attack steps, cheap training")
def nuat(
    model: Classifier,
    batch: Batch,
    *,
    weight: Annotated[float, Ge(0)] = 4.0,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> LossTerms:
    """mean CE(f(x), y) + weight * ||f(x_adv) - f(x)||_* / B on logits; cost 2K + 7 passes for K attack steps.

    ||D||_* is the sum of the singular values of D. It is taken over the rows at hand: a micro-batch, or a
    process, takes the norm of its own.

    x_adv ascends mean CE(f(x_adv), y) + weight * ||f(x_adv) - f(x)||_* / B. The attack takes the clean logits
    from eval mode, as NuAT2 does; that is the seventh pass. The authors take one step from random corners at
    half the radius, which for eps 8/255 is
    `adversary: {name: pgd, steps: 1, step_size: 8/255, start: bernoulli, start_scale: 0.5}`; NuAT2 is steps:
    2. Their `weight` grows from 0 to 4 over the epochs, and every other batch ascends CE alone (NuAT2: the
    second step). Here `weight` is constant, and every attack step ascends both terms.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x, x_adv and y (int64 [B]), or y_soft [B, K], are used.
        weight: of the nuclear norm, no unit, >= 0; 0 is `natural`.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1); not seen by the attack.

    Raises:
        ValueError: weight < 0 or label_smoothing outside [0, 1).

    Source: Sriramanan et al., NeurIPS 2021, openreview.net/forum?id=kuK2VARZGnI;
    the start: the same authors, NeurIPS 2020, arXiv:2011.14969.
    """
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    clean, adversarial = model(batch.x), model(batch.x_adv)
    natural = mean_ce(clean, batch.y, batch.y_soft, label_smoothing)
    norm = nuclear_rows(adversarial, clean).mean()
    return LossTerms(natural + weight * norm, {"natural": natural.detach(), "nuclear": norm.detach()})
