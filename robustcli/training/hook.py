"""What may surround a training step: weight perturbation, weight averaging.

A hook knows no objective and no attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StepContext:
    """What a hook sees of one training step.

    Args:
        model: the classifier that is trained, not wrapped, in training mode.
        gradients: parameters -> gradients of the outer loss of this batch at the present weights, detached,
            the mean over micro-batches and ranks. Zeros for a parameter that the loss does not reach. It
            costs one more forward and backward pass, leaves BatchNorm's buffers as before and does not touch
            `.grad`.
        progress: t in (0, 1), the share of all steps done, taken at the middle of the step.
    """

    model: nn.Module
    gradients: Callable[[Sequence[nn.Parameter]], list[Tensor]]
    progress: float


class Hook:
    """What surrounds each training step. A hook overrides the methods that it needs; the others do nothing.

    A step calls `before_loss` of each hook, computes the outer loss and its gradients, steps the optimiser
    and calls `after_step` of each. When loss or gradient is not finite it calls `undo` instead of stepping.
    """

    def before_loss(self, context: StepContext) -> None:
        """The attack has run; the outer loss is not yet computed."""

    def after_step(self, context: StepContext) -> None:
        """The optimiser has stepped."""

    def undo(self, context: StepContext) -> None:
        """The step is thrown away: leave model and own state as they were before `before_loss`."""

    def averaged(self) -> nn.Module | None:
        """The model to validate and publish in place of the trained one; None while there is none.

        It is not in training mode.
        """
        return None

    def refresh(self, batches: Iterable[Tensor]) -> None:
        """Estimate BatchNorm statistics of the average from training pixels [B, C, H, W], before it is used.

        Reading the batches costs time: a hook that needs no statistics leaves them unread.
        """

    def state(self) -> dict[str, Tensor]:
        """All tensors that a bitwise resume needs; counters as 0-d tensors."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`. Raises CheckpointError when it does not fit the model."""
