"""What a training run does, and what it remembers between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from torch import Tensor

from robustcli.config.sections import Augment
from robustcli.core.random import RowRandom
from robustcli.core.types import LossTerms
from robustcli.data.augment import augment
from robustcli.evaluation.plan import EvalPlan
from robustcli.training.meter import Pace


@dataclass(frozen=True)
class Look:
    """How some validations look deeper than their own attack, where training may learn to mislead it.

    Args:
        plans: the attacks in each ball, on images that stand under the validation's own.
        images: how many validation images are looked at, >= 1.
        every: a look at every so many validations, >= 1; the last one always looks.
    """

    plans: Sequence[EvalPlan]
    images: int
    every: int


@dataclass(frozen=True)
class TrainPlan:
    """What a run does; all of it follows from the configuration.

    Args:
        seed: of order, augmentation, attack starts and dropout.
        batch_size: images of all ranks in a step.
        factor: t in (0, 1) -> factor on the learning rate.
        augment: crop, flip and pose, or None.
        budget: (unit, amount): ("steps", n), ("epochs", e) or ("minutes", m).
        save_every, validate_every: in steps, >= 1.
        validations: plans of the validation, one for each ball; none when there is no validation split.
        val_positions: int64 [m], positions in the validation split.
        robust_best: the best checkpoint is that of the largest robust accuracy; False (natural training)
            takes the largest clean accuracy.
        verified: validations count what is proven, and the best checkpoint is that of the largest verified
            accuracy.
        cutmix: (x, y, ids, epoch) -> (x, y_soft), or None.
        look: how validations look deeper, or None where training cannot mask gradients.
        oom: after out-of-memory "halve" halves the micro-batch and "fail" ends the run; "auto" fails where
            BatchNorm would see smaller batches, and halves otherwise.
    """

    seed: int
    batch_size: int
    factor: Callable[[float], float]
    augment: Augment | None
    budget: tuple[str, float]
    save_every: int
    validate_every: int
    validations: Sequence[EvalPlan]
    val_positions: Tensor
    robust_best: bool = True
    verified: bool = False
    cutmix: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    oom: Literal["auto", "halve", "fail"] = "auto"
    look: Look | None = None

    def looks(self, step: int, finished: bool) -> bool:
        """Whether the validation after `step` looks deeper; finished: it is the last one."""
        if self.look is None:
            return False
        number, rest = divmod(step, self.validate_every)
        return finished or (not rest and number % self.look.every == 0)

    def augmented(self, x: Tensor, y: Tensor, ids: Tensor, epoch: int) -> tuple[Tensor, Tensor | None]:
        """(x, y_soft) as a step sees them, x [B, C, H, W] in [0, 1], y_soft [B, K].

        x is cropped, mirrored and mixed as configured. y_soft is None without CutMix.
        """
        if self.augment is not None:
            x = augment(x, RowRandom(self.seed, "augment", ids, epoch=epoch), self.augment)
        if self.cutmix is None:
            return x, None
        return self.cutmix(x, y, ids, epoch)

    def score(self, accuracies: Mapping[str, Any]) -> tuple[float, float, float]:
        """What the best model is chosen by: the validation with the larger score is better."""
        clean, robust = float(accuracies["clean_acc"] or 0), float(accuracies["robust_acc"] or 0)
        verified = float(accuracies.get("verified_acc") or 0)
        return (verified, robust, clean) if self.robust_best else (verified, clean, robust)


@dataclass
class Progress:
    """What a run remembers between steps; plain JSON, saved in every checkpoint.

    Attributes:
        step: steps made.
        max_steps: steps of the whole run; 0 means not yet known. A budget in minutes plans them anew.
        validated: the step of the last validation.
        best, last: step, epoch and accuracies of the best and the last validation; empty while there is none.
        loss_sums: sums of the loss terms on this rank since the last validation.
        loss_count: number of steps in these sums.
        rank_sums: loss_sums of all ranks; filled in when a checkpoint of several processes is saved.
        log_offset: size in bytes of the file of records at this state.
        world: number of processes that train.
        micro_batch: most images in a pass after out-of-memory, or None.
        guards: states of the guards.
        alarms: what the guards have said.
        ended: why the run ended early, or "".
        pace: how a budget in minutes is spent; None where steps or epochs are counted.
    """

    step: Annotated[int, Ge(0), Lt(10**18)] = 0
    max_steps: Annotated[int, Ge(0), Lt(10**18)] = 0
    validated: Annotated[int, Ge(-1), Lt(10**18)] = -1
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_count: Annotated[int, Ge(0), Lt(10**18)] = 0
    rank_sums: list[dict[str, float]] = field(default_factory=list)
    log_offset: Annotated[int, Ge(0), Lt(10**18)] = 0
    world: Annotated[int, Ge(1), Lt(10**6)] = 1
    micro_batch: Annotated[int, Ge(1), Lt(10**9)] | None = None
    guards: dict[str, dict[str, Any]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    ended: str = ""
    pace: Pace | None = None

    def share(self, step: int) -> float:
        """t in (0, 1]: the share of the run that is done in the middle of step number `step`.

        With a pace only the last step made and the next one are known.
        """
        if self.pace is not None:
            return self.pace.share(step - self.step, self.max_steps - self.step)
        return min((step + 0.5) / self.max_steps, 1.0)

    @property
    def done(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        if self.pace is not None:
            return self.pace.done
        return min(1.0, self.step / self.max_steps)

    def add(self, terms: LossTerms) -> None:
        """Add the loss terms of one step to the sums."""
        for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + float(value)
        self.loss_count += 1

    def mean_losses(self) -> dict[str, float]:
        """Means of the loss terms since the last validation; empty before the first step."""
        if not self.loss_count:
            return {}
        return {name: total / self.loss_count for name, total in self.loss_sums.items()}

    def clear_losses(self) -> None:
        """Start new sums of the loss terms."""
        self.loss_sums, self.loss_count = {}, 0
