"""Training on interval bounds of the whole ball."""

from __future__ import annotations

from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.objectives.walked import Share, Weight, fading, over_box, summed, worst_ce
from robustcli.registry import objectives


@objectives.register(
    "ibp",
    inner=None,
    passes=9,
    held=5,
    bounds=True,
    norms=("linf",),
    use="verified accuracy at large radii, with IBP alone; needs a curriculum of eps",
)
def ibp(
    model: Classifier,
    batch: Batch,
    *,
    kappa_start: Share = 1.0,
    kappa_end: Share = 0.5,
    warmup_reg: Weight = 0.5,
) -> LossTerms:
    """kappa * mean CE(f(x), y) + (1 - kappa) * mean CE(-m, y), m_k = IBP lower bound of z_y - z_k; 9 passes.

    kappa = kappa_start + (kappa_end - kappa_start) r, with the share r of the radius that the curriculum has
    reached. CE(-m, y) is an upper bound of the loss of every point of the ball. While r < 1 the term
    warmup_reg * (1 - r) * (L_tightness + L_relu) of Shi et al. is added, see `Walked.unbalanced`. BatchNorm
    normalises clean images and bounds by the statistics of the clean ones. All of it is computed in float32;
    passes: three forward (images, centres, radii of the boxes), and their backward passes.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; a network whose operations have bounds.
        batch: x and y (int64 [B]), or y_soft [B, K], ball (linf) and ramp are used.
        kappa_start, kappa_end: weight of the clean loss at radius 0 and at the whole radius, in [0, 1].
        warmup_reg: lambda_0 of Shi et al., no unit, >= 0.

    Raises:
        UnsupportedOperation: the network has an operation without bounds.

    Source: Gowal et al., 2018, arXiv:1810.12715; regularisers and BatchNorm: Shi et al., NeurIPS 2021,
    arXiv:2103.17268.
    """
    walked = over_box(model, batch, batch.x, batch.ball.eps)
    kappa = fading(kappa_start, kappa_end, batch.ramp)
    parts = {
        "natural": (kappa, mean_ce(walked.logits, batch.y, batch.y_soft)),
        "bounds": (1 - kappa, worst_ce(walked.margins, batch)),
    }
    return summed(parts, walked, warmup_reg, batch.ramp)
