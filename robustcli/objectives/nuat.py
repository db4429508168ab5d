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

    ||D||_* is the sum of the singular values of D, over the rows at hand: each micro-batch, and each process,
    takes the norm of its own rows.

    x_adv ascends mean CE(f(x_adv), y) + weight * ||f(x_adv) - f(x)||_* / B. The clean logits in it come from
    eval mode, as in NuAT2. They are the seventh pass.

    The authors take one step from random corners at half the radius. For eps 8/255 that is
    `adversary: {name: pgd, steps: 1, step_size: 8/255, start: bernoulli, start_scale: 0.5}`. NuAT2 takes two
    steps. Their weight grows from 0 to 4 over the epochs; here it is constant. Theirs ascends CE alone in
    every other batch (NuAT2: in the second step); here every attack step ascends both terms.

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
