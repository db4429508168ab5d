"""Training on images with Gaussian noise: the base of certificates by randomised smoothing."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, Lt

from robustcli.core.noisy import noise, noisy, noisy_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.registry import objectives


@objectives.register(
    "gaussian", inner=None, passes=3, noisy=True, use="a model to certify by smoothing with this noise"
)
def gaussian(
    model: Classifier,
    batch: Batch,
    *,
    sigma: Annotated[float, Ge(0), Le(10)] = 0.25,
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> LossTerms:
    """mean CE(f(x + sigma n), y),  n ~ N(0, 1) for each pixel; cost 3 passes.

    The noisy image is not cut to [0, 1], as certificates by smoothing ask for. n is drawn anew in each epoch,
    and is the same at each call with one batch.

    Args:
        model: pixels [B, C, H, W], also outside [0, 1] -> logits [B, K].
        batch: x, rng and y (int64 [B]), or y_soft [B, K], are used.
        sigma: standard deviation in pixel units of [0, 1], >= 0; 0 is `natural`.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: sigma < 0 or label_smoothing outside [0, 1).

    Source: Cohen et al., ICML 2019, arXiv:1902.02918, section 3.3.
    """
    drawn = noise(batch.x, batch.rng, sigma=sigma, copies=1)
    loss = noisy_ce(model(noisy(batch.x, drawn)), batch, 1, label_smoothing)
    return LossTerms(loss, {"noisy": loss.detach()})
