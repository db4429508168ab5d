"""Losses an attack maximises. All map logits [B, K] and labels int64 [B] to one number per row [B]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.registry import losses


@losses.register("ce")
def ce(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y. Range [0, inf), no unit. Source: the loss of Madry et al., ICLR 2018, arXiv:1706.06083."""
    return F.cross_entropy(logits, y, reduction="none")


@losses.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y: positive exactly when the row is misclassified. Source: Carlini & Wagner, 2017, arXiv:1608.04644."""
    own = logits.gather(1, y[:, None])[:, 0]
    rest = logits.scatter(1, y[:, None], float("-inf"))
    return rest.amax(1) - own


_TINY = 1e-12


@losses.register("dlr")
def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12), z_(i) the i-th largest logit: the margin, free of shift and scale.

    Range [-1, 1] up to ties; > 0 exactly when misclassified. With two classes there is no z_(3): raises ValueError, use `margin`.
    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, eq. 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the dlr loss needs at least 3 classes, the model has {logits.shape[1]}; use loss: margin")
    top = logits.topk(3, dim=1).values
    score: Tensor = margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)
    return score


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12): towards the class `target` [B], free of shift and scale.

    Raises ValueError for fewer than 4 classes; `difference` exists for any. Source: Croce & Hein, ICML 2020, arXiv:2003.01690, eq. 7.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted dlr loss needs at least 4 classes, the model has {logits.shape[1]}")
    top = logits.topk(4, dim=1).values
    return difference(logits, y, target) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY)


def difference(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y for one class `target` int64 [B] per row; > 0 when the row prefers it to its own class y."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


@dataclass(frozen=True)
class RowLoss:
    """A loss bound to the rows of one batch: `state` (labels, targets, clean logits …) is sliced when rows leave."""

    fn: Callable[..., Tensor]
    state: tuple[Tensor, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """Loss per row [R]; larger is worse for the defender."""
        return self.fn(logits, *self.state)

    def rows(self, index: Tensor) -> RowLoss:
        """The loss of some rows."""
        return RowLoss(self.fn, tuple(part[index] for part in self.state))


@dataclass(frozen=True)
class Criterion:
    """What counts as success: any wrong label, or (targeted) the label `target`.

    Args:
        y: true labels int64 [B].
        target: int64 [B] or None for untargeted.
    """

    y: Tensor
    target: Tensor | None = None

    def hit(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """bool [R]: success per row. A NaN logit never counts as success."""
        label = self.y if self.target is None else self.target
        label = label if rows is None else label[rows]
        predicted = logits.argmax(1)
        right = predicted != label if self.target is None else predicted == label
        return right & torch.isfinite(logits).all(1)

    def bind(self, name: str) -> RowLoss:
        """The registered loss `name`, or its negative towards the target when there is one."""
        fn = losses.get(name).fn
        if self.target is None:
            return RowLoss(fn, (self.y,))
        return RowLoss(lambda logits, target: -fn(logits, target), (self.target,))


def mean_ce(logits: Tensor, y: Tensor, y_soft: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Scalar mean_i -sum_k q_ik log softmax(z_i)_k, with q = (1 - s) * label + s / K; the outer loss of training.

    Args:
        logits: [B, K]; y: int64 [B]; y_soft: label distribution [B, K] that replaces y, or None.
        smoothing: s in [0, 1).

    Raises:
        ValueError: smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {smoothing}")
    return F.cross_entropy(logits.float(), y if y_soft is None else y_soft, label_smoothing=smoothing)
