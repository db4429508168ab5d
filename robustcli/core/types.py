"""Types that all layers share: a classifier, a training batch, and the terms of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.facts import Needs

#: Pixels [B, C, H, W] in [0, 1] -> logits [B, K]. Normalisation is inside.
Classifier: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """What an objective sees of one training batch.

    Args:
        x: clean pixels [B, C, H, W] in [0, 1], after augmentation.
        y: labels int64 [B].
        x_adv: attacked pixels, in `ball` around x; x itself when the objective has no inner attack.
        ids: int64 [B], index of each sample in the stored split.
        ball: norm, radius and box of the threat, in pixel units of [0, 1].
        rng: one random stream per row.
        y_soft: label distribution [B, K] when an augmentation mixes images, else None.
        ramp: share of the configured radius that a curriculum has reached, in [0, 1].
        x_start: where the attack asked for its first gradient, [B, C, H, W]; x where it asked for none, None
            where no attack ran.
        progress: share of all steps that is done, in [0, 1].
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor
    ids: Tensor
    ball: Ball
    rng: RowRandom
    y_soft: Tensor | None = None
    ramp: float = 1.0
    x_start: Tensor | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class LossTerms:
    """What an objective answers: `total`, the scalar to minimise, and `parts`, named scalars for the log."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


def reject_of(model: object) -> int | None:
    """The column of the logits of a guarded model that says "reject", or None for any other model."""
    reject: int | None = getattr(model, "reject", None)
    return reject if isinstance(reject, int) else None


def offers(model: object) -> Needs:
    """The most that a model can be asked for: "gradient", or what a black box says of itself.

    A black box has an attribute `answers`: "scores" for logits, "labels" for decisions alone.
    """
    known: dict[object, Needs] = {"scores": "scores", "labels": "decisions"}
    return known.get(getattr(model, "answers", None), "gradient")


def declares_draws(model: object) -> bool:
    """Whether a model says of itself that each of its passes draws anew, as a randomised defence does."""
    return getattr(model, "randomised", False) is True


def passes_of(model: object) -> int:
    """Passes of networks in each answer of a model: 1, or what a guarded model says of itself."""
    passes: int = getattr(model, "passes", 1)
    return passes if reject_of(model) is not None else 1


def network_of(model: Classifier) -> nn.Module:
    """The network that an objective trains: the model itself, or what stands behind its training passes.

    For what a forward pass does not give, such as bounds of the graph. Raises TypeError for a plain function.
    """
    network = getattr(model, "network", model)
    if isinstance(network, nn.Module):
        return network
    raise TypeError(f"{model!r} is no network")
