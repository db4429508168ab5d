"""What a training run does, and what it remembers between two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.data.augment import augment
from robustcli.evaluation.plan import EvalPlan


@dataclass(frozen=True)
class TrainPlan:
    """What a run does; all of it follows from the configuration.

    Args:
        seed: of order, augmentation, attack starts and dropout.
        batch_size: global batch, over all ranks.
        factor: learning-rate factor as a function of t in (0, 1).
        augment: crop, flip and pose, or None.
        budget: (unit, amount): ("steps", n), ("epochs", e) or ("minutes", m).
        save_every, validate_every: in steps, >= 1.
        validation: plan of the robust validation, or None when there is no validation split.
        val_positions: int64 [m], positions in the validation split.
        robust_best: choose the best checkpoint by robust accuracy (natural training: by clean accuracy).
        cutmix: (x, y, ids, epoch) -> (x, y_soft), or None.
        oom: after out-of-memory, halve the micro-batch or fail; auto fails where BatchNorm would see smaller batches.
    """

    seed: int
    batch_size: int
    factor: Callable[[float], float]
    augment: Any
    budget: tuple[str, float]
    save_every: int
    validate_every: int
    validation: EvalPlan | None
    val_positions: Tensor
    robust_best: bool = True
    cutmix: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    oom: Literal["auto", "halve", "fail"] = "auto"

    def augmented(self, x: Tensor, y: Tensor, ids: Tensor, epoch: int) -> tuple[Tensor, Tensor | None]:
        """(x, y_soft) as a step sees them: cropped, mirrored, mixed; y_soft is None without CutMix."""
        if self.augment is not None:
            x = augment(x, RowRandom(self.seed, "augment", ids, epoch=epoch), self.augment)
        return (x, None) if self.cutmix is None else self.cutmix(x, y, ids, epoch)


@dataclass
class Progress:
    """What a run remembers between steps; plain JSON, saved in every checkpoint.

    loss_sums are those of this rank; rank_sums those of all ranks, filled in when a checkpoint of several processes is saved.
    """

    step: int = 0
    max_steps: int = 0
    validated: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_count: int = 0
    rank_sums: list[dict[str, float]] = field(default_factory=list)
    log_offset: int = 0
    world: int = 1
    micro_batch: int | None = None
    guards: dict[str, dict[str, Any]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    ended: str = ""
