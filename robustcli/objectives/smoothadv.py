"""Adversarial training of the smoothed classifier."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, Lt

from robustcli.core.noisy import Smoothed, noise, noisy, noisy_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "smoothadv",
    inner="ce",
    view=Smoothed,
    copies="copies",
    passes=3,
    noisy=True,
    use="larger radii by smoothing than `gaussian`, for an l2 attack's time",
)
def smoothadv(
    model: Classifier,
    batch: Batch,
    *,
    sigma: Annotated[float, Ge(0), Le(10)] = 0.25,
    copies: Annotated[int, Ge(1), Le(64)] = 2,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> LossTerms:
    """mean_m CE(f(x_adv + sigma n_m), y),  x_adv = argmax -log mean_m p_y(x + sigma n_m); 2KM + 3M passes.

    p = softmax f, and m runs over the copies. The attack goes through the smoothed classifier
    (`core.noisy.Smoothed`). The n_m are drawn once for each image and epoch: all steps of the attack and the
    loss have the same. K is the number of attack steps, M that of copies.

    The authors take `ball: {norm: l2, eps: 0.25 to 2}`, 2 to 10 steps from the clean image
    (`adversary: {name: pgd, start: zero}`), 1 to 8 copies, and let eps grow over the first epochs
    (`train.curriculum: {eps_start: 0, eps_until: 0.07}`). They split a batch into as many parts as there are
    copies.

    Args:
        model: pixels [B, C, H, W], also outside [0, 1] -> logits [B, K].
        batch: x_adv, rng and y (int64 [B]), or y_soft [B, K], are used.
        sigma: standard deviation in pixel units of [0, 1], >= 0; 0 with one copy is `madry`.
        copies: noise vectors for each image, >= 1.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1); not seen by the attack.

    Raises:
        ValueError: sigma < 0, copies < 1 or label_smoothing outside [0, 1).

    Source: Salman et al., NeurIPS 2019, arXiv:1906.04584, Algorithm 1 (SmoothAdv-PGD).
    """
    drawn = noise(batch.x, batch.rng, sigma=sigma, copies=copies)
    logits = model(noisy(batch.x_adv, drawn))
    loss = noisy_ce(logits, batch, copies, label_smoothing)
    return LossTerms(loss, {"adversarial": loss.detach()})
