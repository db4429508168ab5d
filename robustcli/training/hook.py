"""A hook surrounds a training step: weight perturbation, weight averaging.

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
        gradients: parameters -> gradients of the outer loss of this batch at the present weights. They are
            detached means over micro-batches and ranks, and zeros for a parameter that the loss does not
            reach. A call costs one more forward and backward pass. It leaves BatchNorm's buffers and `.grad`
            as before.
        progress: t in (0, 1), the share of all steps done, taken at the middle of the step.
    """

    model: nn.Module
    gradients: Callable[[Sequence[nn.Parameter]], list[Tensor]]
    progress: float


class Hook:
    """Surrounds each training step. A hook overrides the methods that it needs; the others do nothing.

    A step calls `before_loss` of each hook, computes the outer loss and its gradients, runs the optimiser and
    calls `after_step` of each hook. When the step fails before the optimiser runs, it calls `undo` of each
    hook instead.
    """

    def before_loss(self, context: StepContext) -> None:
        """Called after the attack and before the outer loss."""

    def after_step(self, context: StepContext) -> None:
        """Called after the optimiser's step.

        Hooks with a `before_loss` come first, the last of them before the others: what they have moved goes
        back. Hooks that average come last.
        """

    def undo(self, context: StepContext) -> None:
        """The step is thrown away: restore the model and the hook's own state as before `before_loss`."""

    def averaged(self) -> nn.Module | None:
        """The model to validate and publish in place of the trained one; None while there is none.

        It is in eval mode.
        """
        return None

    def refresh(self, batches: Iterable[Tensor]) -> None:
        """Estimate BatchNorm statistics of the average from training pixels [B, C, H, W] in [0, 1].

        It is called before the average is used. Reading the batches costs time: a hook that needs no
        statistics leaves them unread.
        """

    def state(self) -> dict[str, Tensor]:
        """All tensors that a bitwise resume needs; counters are 0-d tensors."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`. Raises CheckpointError when the tensors do not fit the model."""
