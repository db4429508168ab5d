"""What the training loop needs of a step."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from robustcli.core.types import LossTerms
from robustcli.training.descent import Descent
from robustcli.training.settings import StepSettings


class Step(Protocol):
    """One or several updates of the weights from one batch.

    Attributes:
        settings: what the step is made of.
        descent: the outer half of the step; it holds the hooks and the model as it is trained.
        micro_batch: most images in one pass now; None means the whole batch.
    """

    settings: StepSettings
    descent: Descent
    micro_batch: int | None

    @property
    def twin_note(self) -> str:
        """Why the attack searches on the model itself although a twin was asked for; "" otherwise."""

    @property
    def way(self) -> str:
        """In which form the search was found to be fastest, or why it is not recorded; "" otherwise."""

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        seed: int,
        epoch: int,
        y_soft: Tensor | None = None,
        progress: float = 0.5,
        number: int = 0,
    ) -> LossTerms:
        """One step on a batch, at the share `progress` of the run; returns the loss terms.

        Args:
            x: pixels [B, C, H, W] in [0, 1].
            y, ids: labels and sample ids, int64 [B].
            seed, epoch: of all draws.
            y_soft: label distributions [B, K] where an augmentation has mixed images, else None.
            progress: in [0, 1].
            number: of the step, from 0.

        Raises NumericsError (loss or gradient not finite), torch.OutOfMemoryError or Interrupted, the same on
        all ranks.
        """

    def halve(self, rows: int) -> int:
        """Halve `micro_batch` after out-of-memory on `rows` images; its new size, or 0 if that cannot be."""

    def state(self) -> dict[str, Tensor]:
        """Tensors of the step itself that a resume needs; model, optimiser and hooks are not part."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
