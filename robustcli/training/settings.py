"""What a training step is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.evaluation.plan import Search
from robustcli.evaluation.quickest import Length
from robustcli.runtime.distributed import Ranks, solo
from robustcli.training.hook import Hook

#: (oracle, x, ball) -> x_adv, parameters bound.
Attack: TypeAlias = Callable[[Oracle, Tensor, Ball], Tensor]
#: An attack and the ball that it searches.
Threat: TypeAlias = tuple[Attack, Ball]
#: Share of the run in [0, 1] -> the threat there.
Strength: TypeAlias = Callable[[float], Threat]
#: (model, batch) -> loss terms, parameters bound.
Objective: TypeAlias = Callable[[Classifier, Batch], LossTerms]
#: (model, batch) -> scalar that is added to the objective, already weighted.
Regularizer: TypeAlias = Callable[[Classifier, Batch], Tensor]
#: (model, clean pixels [B, C, H, W], one random stream per row) -> the classifier that an attack sees.
View: TypeAlias = Callable[[Classifier, Tensor, RowRandom], Classifier]


@dataclass(frozen=True)
class StepSettings:
    """Everything that a registered training step is given, besides its own parameters.

    Args:
        model: the classifier that is trained, pixels [B, C, H, W] in [0, 1] -> logits [B, K], not wrapped.
        objective: the outer loss.
        inner: name of the loss that the attack ascends; None trains on clean images.
        attack: what searches for x_adv.
        ball: the threat; of several, the first.
        optimizer: updates the model's parameters.
        dtype: autocast type of the outer passes; float32 means none.
        attack_bn: "eval" attacks with BatchNorm's running statistics, "train" with those of the batch.
        search: how the search twin is made, which is attacked under attack_bn "eval". `Search().exact()`
            attacks the model itself.
        channels_last: memory format of the pixels.
        grad_clip: largest global l2 norm of the gradient; None clips nothing.
        data_parallel: the outer passes run on all GPUs of this process (nn.DataParallel).
        compiled: the outer passes run through torch.compile.
        race: how long the run is; its first step finds out whether that is faster. None makes no race.
        scaler: scales fp16 losses; a disabled one does nothing.
        stop: raises to interrupt. It is called before every pass of the attack, never in the outer half.
        regularizers: name -> regulariser; they share the passes of the objective.
        hooks: what surrounds the step.
        ranks: the processes that train together.
        strength: t -> (attack, ball), a curriculum; None means `attack` and `ball` throughout.
        threats: (t, seed, number of the step) -> the threats of a step, of a union of several balls; None for
            one ball.
        worst: of a union: whether each image descends at its worst point alone, and not at those of all.
        inner_params: parameters of the inner loss.
        view: what the attack sees in place of the model; None for the model itself.
        micro_batch: most images in one pass; gradients are added up to the whole batch. None: the whole
            batch.
        fewest: fewest images in one pass that the model bears in train mode.
    """

    model: nn.Module
    objective: Objective
    inner: str | None
    attack: Attack
    ball: Ball
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype = torch.float32
    attack_bn: Literal["eval", "train"] = "eval"
    search: Search = Search()
    channels_last: bool = True
    grad_clip: float | None = None
    data_parallel: bool = False
    compiled: bool = False
    race: Length | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    stop: Callable[[], None] | None = None
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    ranks: Ranks = field(default_factory=solo)
    strength: Strength | None = None
    threats: Callable[[float, int, int], list[Threat]] | None = None
    worst: bool = False
    inner_params: Mapping[str, float] = field(default_factory=dict)
    view: View | None = None
    micro_batch: int | None = None
    fewest: int = 1

    def threats_of(self, progress: float, seed: int, number: int) -> list[Threat]:
        """The threats of step `number`, at the share `progress` in [0, 1] of the run; one without a union."""
        if self.threats is None:
            return [self.threat(progress)]
        return self.threats(progress, seed, number)

    def threat(self, progress: float) -> Threat:
        """(attack, ball) at the share `progress` in [0, 1] of the run."""
        if self.strength is None:
            return self.attack, self.ball
        return self.strength(progress)

    def reached(self, ball: Ball) -> float:
        """The share of the configured radius that `ball` has, in [0, 1]."""
        return ball.eps / self.ball.eps if self.ball.eps else 1.0

    def laid_out(self, x: Tensor) -> Tensor:
        """Pixels [B, C, H, W] in the memory format of training."""
        if self.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x
