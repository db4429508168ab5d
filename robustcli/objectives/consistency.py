"""One answer under all noise: the regularised training for smoothing that needs no attack."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, Lt
from torch import Tensor

from robustcli.core.losses import wide
from robustcli.core.noisy import noise, noisy, noisy_ce, soft_vote
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "consistency",
    inner=None,
    copies="copies",
    passes=3,
    noisy=True,
    use="larger radii by smoothing than `gaussian`, without an attack",
)
def consistency(
    model: Classifier,
    batch: Batch,
    *,
    sigma: Annotated[float, Ge(0), Le(10)] = 0.25,
    copies: Annotated[int, Ge(1), Le(64)] = 2,
    weight: Annotated[float, Ge(0), Le(1000)] = 10.0,
    entropy: Annotated[float, Ge(0), Le(1000)] = 0.5,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> LossTerms:
    """mean_m CE(z_m, y) + weight * mean_m KL(q || p_m) + entropy * H(q),  q = mean_m p_m; cost 3M passes.

    z_m = f(x + sigma n_m) with n_m ~ N(0, 1) for each pixel, p_m = softmax(z_m), and m runs over the copies.
    M is the number of copies. The gradient runs through q as well.

    Args:
        model: pixels [B, C, H, W], also outside [0, 1] -> logits [B, K].
        batch: x, rng and y (int64 [B]), or y_soft [B, K], are used.
        sigma: standard deviation in pixel units of [0, 1], >= 0; 0 with entropy = 0 is `natural`.
        copies: noise vectors for each image, >= 1; with one the KL is 0.
        weight: lambda, no unit, >= 0; the authors take 20 for sigma 0.25 and 10 for 0.5 and 1 on CIFAR-10.
        entropy: eta, no unit, >= 0.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1); first term only.

    Raises:
        ValueError: sigma, weight or entropy < 0, copies < 1, or label_smoothing outside [0, 1).

    Source: Jeong & Shin, NeurIPS 2020, arXiv:2006.04062, eq. 8.
    """
    if not (weight >= 0 and entropy >= 0):
        raise ValueError(f"weight and entropy must be >= 0, got {weight} and {entropy}")
    drawn = noise(batch.x, batch.rng, sigma=sigma, copies=copies)
    logits = model(noisy(batch.x, drawn))
    first = noisy_ce(logits, batch, copies, label_smoothing)
    kl, doubt = (part.mean() for part in disagreement(logits, copies))
    parts = {"noisy": first, "consistency": kl, "entropy": doubt}
    total = first + weight * kl + entropy * doubt
    return LossTerms(total, {name: part.detach() for name, part in parts.items()})


def disagreement(logits: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """(mean_m KL(q || p_m), H(q)), each [B] in nats, of logits [M * B, K] and q = mean_m p_m."""
    log_q = soft_vote(logits, copies)
    log_p = wide(logits).log_softmax(1).unflatten(0, (copies, -1))
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(2).mean(0), -(q * log_q).sum(1)
