"""Stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from robustcli.registry import hooks
from robustcli.training.hook import Hook, StepContext
from robustcli.training.hooks.average import WeightCopy, load_tensors
from robustcli.training.schedules import Share


class _NormsOnly(nn.Module):
    """The model as `update_bn` sees it: `train` switches BatchNorm alone into training mode.

    Dropout stays off, so no random numbers are drawn.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training, self.passes = model, False, 0
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.norms = [norm for norm in norms if norm.running_mean is not None]

    def train(self, mode: bool = True) -> _NormsOnly:
        for norm in self.norms:
            norm.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.model(x)
        return logits


class EqualMean(Hook):
    """Holds theta' and three counters.

    _seen: steps after the share `start` of the run. _count: models averaged so far. _refreshed: the value of
    _count when BatchNorm's statistics were last estimated.
    """

    def __init__(self, model: nn.Module, start: float, every: int) -> None:
        self.start, self.every = start, every
        self._copy = WeightCopy(model)
        self._seen, self._count, self._refreshed = (torch.zeros((), dtype=torch.int64) for _ in range(3))

    def after_step(self, context: StepContext) -> None:
        if context.progress < self.start:
            return
        if int(self._seen) % self.every == 0:
            self._count += 1
            self._copy.move(1 / int(self._count))
        self._seen += 1

    def averaged(self) -> nn.Module | None:
        return self._copy.module if self._count else None

    def refresh(self, batches: Iterable[Tensor]) -> None:
        norms = _NormsOnly(self._copy.module)
        if self._refreshed == self._count or not norms.norms:
            return
        try:
            update_bn(batches, norms)
        finally:
            norms.train(False)
        if not norms.passes:
            raise ValueError("BatchNorm statistics need at least one batch")
        self._refreshed.copy_(self._count)

    def state(self) -> dict[str, Tensor]:
        return {
            **self._copy.tensors(),
            "seen": self._seen,
            "count": self._count,
            "refreshed": self._refreshed,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        load_tensors(self.state(), state, "swa")


@hooks.register("swa", extra_losses=0, publishes="weights", estimates=True)
def swa(model: nn.Module, *, start: Share = 0.75, every: Annotated[int, Ge(1)] = 1) -> Hook:
    """theta' = (theta_1 + ... + theta_n) / n.

    From the share `start` on, each `every`-th step gives one theta_i, the weights after it. Before theta_1
    there is no average. `refresh` estimates BatchNorm's statistics of theta' as the plain mean over its
    batches, with dropout off. It does so only when theta' has changed since the last time. Until then the
    statistics are the live model's. Cost: one more copy of the model, and one forward pass per batch of
    `refresh`. It works best with a learning rate that stays high after `start`.

    Args:
        model: the classifier that is trained, on its device and in its memory format.
        start: share of all steps done before the first averaging, in [0, 1).
        every: steps from one averaged model to the next, >= 1. The number of steps of an epoch gives the
            paper's mean over epochs.

    Raises:
        ValueError: start or every out of range; `refresh` without any batch.

    Source: Izmailov et al., UAI 2018, arXiv:1803.05407, Algorithm 1.
    """
    if not 0 <= start < 1 or not every >= 1:
        raise ValueError(f"start must be in [0, 1) and every >= 1, got {start} and {every}")
    return EqualMean(model, start, every)
