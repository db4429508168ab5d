"""What may surround a training step: weight perturbation, weight averaging. A hook knows no objective and no attack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StepContext:
    """What a hook sees of one training step.

    Args:
        model: the unwrapped classifier that is trained, in training mode.
        gradients: parameters -> gradients of the outer loss of this batch at the present weights, the mean over micro-batches and ranks,
            detached; one more forward and backward pass. Zeros for a parameter that the loss does not reach. BatchNorm buffers are as
            before afterwards; `.grad` is not touched.
        progress: t in (0, 1), the share of all steps done, taken at the middle of the step.
    """

    model: nn.Module
    gradients: Callable[[Sequence[nn.Parameter]], list[Tensor]]
    progress: float


class Hook:
    """One wrapper of the training step. Every method may stay as it is.

    A step calls `before_loss` of each hook, computes the outer loss and its gradients, calls `after_backward`, steps the optimiser, calls
    `after_step`. When loss or gradient is not finite it calls `undo` instead of the last two, and the weights must be as before the step.
    """

    def before_loss(self, context: StepContext) -> None:
        """The attack is done, the outer loss is not yet computed."""

    def after_backward(self, context: StepContext) -> None:
        """Gradients are ready; the optimiser has not stepped."""

    def after_step(self, context: StepContext) -> None:
        """The optimiser has stepped."""

    def undo(self, context: StepContext) -> None:
        """The step is thrown away: leave model and own state as they were before `before_loss`."""

    def averaged(self) -> nn.Module | None:
        """The model to validate and to publish instead of the trained one, or None while there is none. Not in training mode."""
        return None

    def refresh(self, batches: Iterable[Tensor]) -> None:
        """Before `averaged` is used: training pixels [B, C, H, W] to estimate BatchNorm statistics from, read only when needed."""

    def state(self) -> dict[str, Tensor]:
        """All tensors that a bitwise resume needs; counters as 0-d tensors."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`. Raises CheckpointError when it does not fit the model."""
