"""Several models searched on together: what fools all of them fools others more often.

Source: Liu et al., ICLR 2017, arXiv:1611.02770; the three ways to join: Dong et al., CVPR 2018,
arXiv:1710.06081.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from robustcli.core.types import Classifier

#: logits: one search on the mean of all logits. loss: one search on the mean of all losses. best: a search on
#: each model, and of each sample the point that does most to all of them.
Join = Literal["logits", "loss", "best"]
#: (model, passes averaged per answer) -> x_adv [R, C, H, W] of one search.
Searching = Callable[[Classifier, int], Tensor]


class Turns:
    """Pixels -> logits of one model after another. Its mean over as many passes is that of all models.

    The oracle averages losses, gradients and logits over passes, so a search with M draws climbs the mean
    loss of M models, whatever the loss is.
    """

    def __init__(self, models: Sequence[Classifier]) -> None:
        self._models, self._next = models, 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, K] of the model whose turn it is."""
        model = self._models[self._next]
        self._next = (self._next + 1) % len(self._models)
        return model(x)


def mean_of(models: Sequence[Classifier]) -> Classifier:
    """x -> the mean of the logits of all models, [B, K]."""

    def run(x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in models]).mean(0)

    return run


def jointly(
    models: Sequence[Classifier], join: Join, draws: Sequence[int], search: Searching
) -> list[Tensor]:
    """The points of all searches that the way to join asks for, [R, C, H, W] each.

    Args:
        models: what is searched on, >= 1.
        join: how they join.
        draws: of each model, passes averaged per answer.
        search: one search.
    """
    if join == "best" or len(models) == 1:
        return [search(model, many) for model, many in zip(models, draws, strict=True)]
    if join == "loss":
        return [search(Turns(models), len(models) * max(draws))]
    return [search(mean_of(models), max(draws))]


def strongest(points: Sequence[Tensor], harm: Callable[[Tensor], Tensor]) -> Tensor:
    """Of each sample the point with the largest harm, of equal ones the first: [R, C, H, W].

    points: P times [R, C, H, W]. harm: points [R, C, H, W] -> [R].
    """
    if len(points) == 1:
        return points[0]
    best = torch.stack([harm(point) for point in points]).argmax(0)
    rows = torch.arange(len(best), device=best.device)
    return torch.stack(list(points))[best, rows]
