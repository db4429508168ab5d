"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from robustcli.registry import hooks
from robustcli.training.hook import Hook, StepContext
from robustcli.training.hooks.average import WeightCopy, load_tensors
from robustcli.training.schedules import Share


class MovingAverage(Hook):
    """Holds theta' and t, the number of updates after the warm-up."""

    def __init__(self, model: nn.Module, decay: float, warmup: float) -> None:
        self.decay, self.warmup = decay, warmup
        self._copy = WeightCopy(model)
        self._count = torch.zeros((), dtype=torch.int64)

    def after_step(self, context: StepContext) -> None:
        if context.progress < self.warmup:
            self._copy.move(1.0)
            return
        t = int(self._count)
        self._copy.move(1 - min(self.decay, (1 + t) / (10 + t)))
        self._count += 1

    def averaged(self) -> nn.Module:
        return self._copy.module

    def state(self) -> dict[str, Tensor]:
        return {**self._copy.tensors(), "count": self._count}

    def load(self, state: dict[str, Tensor]) -> None:
        load_tensors(self.state(), state, "ema")


@hooks.register("ema", extra_losses=0, publishes="weights")
def ema(model: nn.Module, *, decay: Annotated[float, Ge(0), Lt(1)] = 0.995, warmup: Share = 0.025) -> Hook:
    """theta' <- tau theta' + (1 - tau) theta,  tau = min(decay, (1 + t) / (10 + t)),  t = updates so far.

    theta' starts as a copy of theta and equals it bitwise during the warm-up. t counts from the end of the
    warm-up. Buffers, BatchNorm's running statistics among them, are copied from the live model after each
    step. There is an average from the first step on. Cost: one more copy of the model, and no pass.

    Args:
        model: the classifier that is trained, on its device and in its memory format.
        decay: largest tau, no unit, in [0, 1); 0.995 for batches of 1024. 0 gives the live model, bitwise.
        warmup: share of all steps before the first averaging, in [0, 1).

    Raises:
        ValueError: decay or warmup out of range.

    Source: Polyak averaging as in Gowal et al., 2020, arXiv:2010.03593, and Rebuffi et al., NeurIPS 2021,
        arXiv:2103.01946.
    """
    if not 0 <= decay < 1 or not 0 <= warmup < 1:
        raise ValueError(f"decay and warmup must be in [0, 1), got {decay} and {warmup}")
    return MovingAverage(model, decay, warmup)
