"""Training of what stands in front of a classifier that stays as it is."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch.nn.functional import mse_loss

from robustcli.core.losses import mean_ce, wide
from robustcli.core.noisy import noise, noisy
from robustcli.core.types import Batch, Classifier, LossTerms, network_of
from robustcli.registry import objectives


@objectives.register(
    "denoise",
    inner=None,
    passes=4,
    noisy=True,
    front=True,
    use="a denoiser in front of a trained classifier (`train.front`), to certify both by smoothing",
)
def denoise(
    model: Classifier,
    batch: Batch,
    *,
    sigma: Annotated[float, Ge(0), Le(10)] = 0.25,
    stability: Annotated[float, Ge(0), Le(1000)] = 1.0,
    mse: Annotated[float, Ge(0), Le(1000)] = 0.0,
) -> LossTerms:
    """stability * mean CE(f(D(x + sigma n)), argmax f(x)) + mse * mean |D(x + sigma n) - x|^2; cost 4 passes.

    f is the classifier and D what stands in front of it. n ~ N(0, 1) for each pixel, drawn anew in each
    epoch, and the noisy image is not cut to [0, 1]. No label is used. The fourth pass is f(x). With mse > 0
    the image goes through D once more. Without anything in front D is the identity.

    The authors train with mse alone, with stability alone, or with stability from the weights of mse.

    Args:
        model: pixels [B, C, H, W], also outside [0, 1] -> f(D(x)) [B, K]. Its network may have `front`, the
            module D, and `bare`, the map f; without them it is f.
        batch: x and rng are used.
        sigma: standard deviation in pixel units of [0, 1], >= 0.
        stability: weight of the cross-entropy, no unit, >= 0.
        mse: weight of the squared error, a mean over pixels; no unit, >= 0.

    Raises:
        ValueError: sigma < 0, a weight < 0, or both weights 0.

    Source: Salman et al., NeurIPS 2020, arXiv:2003.01908, section 3.
    """
    if not (stability >= 0 and mse >= 0 and stability + mse > 0):
        raise ValueError(f"stability and mse must be >= 0 and not both 0, got {stability} and {mse}")
    network = network_of(model)
    shown = noisy(batch.x, noise(batch.x, batch.rng, sigma=sigma, copies=1))
    parts = {}
    if stability:
        with torch.no_grad():
            own = getattr(network, "bare", network)(batch.x).argmax(1)
        parts["stability"] = mean_ce(model(shown), own)
    if mse:
        front = getattr(network, "front", None) or torch.nn.Identity()
        parts["mse"] = mse_loss(wide(front(shown)), wide(batch.x))
    weights = {"stability": stability, "mse": mse}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return LossTerms(total, {name: part.detach() for name, part in parts.items()})
