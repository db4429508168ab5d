"""The training loop: steps, validation, checkpoints, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.data.augment import augment
from robustcli.data.sampling import train_order
from robustcli.data.split import Split
from robustcli.errors import DataError, Interrupted, NumericsError
from robustcli.evaluation.robust import EvalPlan, Evaluation, RobustEvaluation
from robustcli.training.state import pack_optimizer, step_seed, unpack_optimizer
from robustcli.training.steps import MinMax

#: A probe for `minutes` runs this many warm-up and measured steps on a copy of the state.
_PROBE = (2, 6)


@dataclass(frozen=True)
class TrainPlan:
    """What a run does; all of it follows from the configuration.

    Args:
        seed: of order, augmentation, attack starts and dropout.
        batch_size: global batch.
        factor: learning-rate factor as a function of t in (0, 1).
        augment: crop and flip, or None.
        budget: (unit, amount): ("steps", n), ("epochs", e) or ("minutes", m).
        save_every, validate_every: in steps, >= 1.
        validation: plan of the robust validation, or None when there is no validation split.
        val_positions: int64 [m], positions in the validation split.
        robust_best: choose the best checkpoint by robust accuracy (natural training: by clean accuracy).
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


@dataclass
class Progress:
    """What a run remembers between steps; plain JSON, saved in every checkpoint."""

    step: int = 0
    max_steps: int = 0
    validated: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_count: int = 0
    log_offset: int = 0


class Trainer:
    """Drives `MinMax` steps through the data; knows no objective, attack or file format.

    Args:
        step: one training step; holds model and optimiser.
        train, val: splits; val may be None.
        plan: what to do.
        device: where the batches go.
        save: (progress, groups of tensors, tags) -> None: write a checkpoint.
        log: (row) -> None: one training record as plain JSON.
        tick: (progress, images per second, share of time waiting for data) after each step.
        stop: raises Interrupted when a signal came.
        say: one line to the user.
    """

    def __init__(
        self,
        step: MinMax,
        train: Split,
        val: Split | None,
        plan: TrainPlan,
        device: torch.device,
        *,
        save: Callable[[Progress, dict[str, dict[str, Tensor]], Sequence[str]], None],
        log: Callable[[dict[str, Any]], None],
        tick: Callable[[Progress, float, float], None] = lambda progress, rate, waiting: None,
        stop: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.step, self.train, self.val, self.plan, self.device = step, train, val, plan, device
        self._save, self._log, self._tick, self._stop, self._say = save, log, tick, stop, say
        self.batch_size = min(plan.batch_size, len(train))
        if not self.batch_size:
            raise DataError("the training split is empty")
        self.steps_per_epoch = len(train) // self.batch_size
        self._base_lrs = [float(group["lr"]) for group in step.optimizer.param_groups]
        self.progress = Progress()
        self.offending: dict[str, Tensor] = {}
        self._saved = -1
        self._clock = self._waited = 0.0
        self._images = 0

    # ---- state -------------------------------------------------------------------------------------------------

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors a resume needs."""
        groups = {"model": dict(self.step.model.state_dict()), "optimizer": pack_optimizer(self.step.model, self.step.optimizer)}
        if self.step.scaler is not None:
            groups["scaler"] = {key: torch.tensor(value) for key, value in self.step.scaler.state_dict().items()}
        return groups

    def restore(self, groups: dict[str, dict[str, Tensor]], progress: Progress, *, where: str = "") -> None:
        """Continue from a checkpoint: the tensors of `groups()` and its progress."""
        self.step.model.load_state_dict(groups["model"])
        unpack_optimizer(self.step.model, self.step.optimizer, groups.get("optimizer", {}), where=where)
        if self.step.scaler is not None and "scaler" in groups:
            self.step.scaler.load_state_dict({key: value.item() for key, value in groups["scaler"].items()})
        self.progress, self._saved = progress, progress.step

    # ---- budget ------------------------------------------------------------------------------------------------

    def fix_budget(self) -> int:
        """Turn epochs or minutes into a number of steps, once; the schedule runs on steps, so a resume repeats it."""
        unit, amount = self.plan.budget
        if unit == "minutes":
            steps = self._steps_for(60 * amount)
        else:
            steps = int(amount) if unit == "steps" else round(amount * self.steps_per_epoch)
        self.progress.max_steps = max(1, steps)
        return self.progress.max_steps

    def _steps_for(self, seconds: float) -> int:
        """Steps that fit, by timing a few on a copy of the state; validation is charged by its share of passes."""
        before = {name: {key: t.clone() for key, t in group.items()} for name, group in self.groups().items()}
        warm, counted = _PROBE
        self.progress.max_steps = 10**9
        began = time.perf_counter()
        for k, (x, y, ids) in enumerate(self._stream(0, 0)):
            if k == warm:
                self._sync()
                began = time.perf_counter()
            if k == warm + counted or k == self.steps_per_epoch - 1:
                break
            self._one(x, y, ids, 0)
            self.progress.step += 1
        self._sync()
        measured = max(1, min(counted, self.progress.step - warm))
        per_step = (time.perf_counter() - began) / measured
        self.restore(before, Progress())
        self._saved = -1
        rounds = self._probe_validation() / self.plan.validate_every
        steps = int(seconds / (per_step + rounds))
        self._say(f"{seconds / 60:g} minutes are {steps} steps of {self.batch_size} images ({per_step:.3g} s a step, {rounds:.2g} s of validation)")
        return steps

    def _probe_validation(self) -> float:
        """Seconds of one validation, from a sixteenth of it (all rows stay in play: no watch confirms before training)."""
        if self.plan.validation is None or self.val is None or not len(self.plan.val_positions):
            return 0.0
        part = self.plan.val_positions[:: max(1, len(self.plan.val_positions) // 64)]
        began = time.perf_counter()
        RobustEvaluation(self.step.model, self.plan.validation, stop=self._stop).run(self.val, part, self.device)
        # An untrained model falls at once; a trained one is attacked to the end by about half of its images.
        return (time.perf_counter() - began) * len(self.plan.val_positions) / len(part) * 2

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ---- run ---------------------------------------------------------------------------------------------------

    def run(self) -> Progress:
        """Train to the end of the budget. On a signal the last step boundary is saved and Interrupted goes on up."""
        if not self.progress.max_steps:
            self.fix_budget()
        progress = self.progress
        stream: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        try:
            while True:
                self._stop()
                finished = progress.step >= progress.max_steps
                self._at_boundary(finished)
                if finished:
                    return progress
                epoch, position = divmod(progress.step, self.steps_per_epoch)
                if stream is None or position == 0:
                    stream = self._stream(epoch, position)
                stream = self._advance(stream, epoch)
        except Interrupted as error:
            if self._saved != progress.step:
                self._checkpoint(("last",))
            raise Interrupted(f"preempted at step {progress.step} of {progress.max_steps}", signum=error.signum, hint="resume with --resume") from None

    def _advance(self, stream: Iterator[tuple[Tensor, Tensor, Tensor]], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        began = time.perf_counter()
        x, y, ids = next(stream)
        self._waited += time.perf_counter() - began
        self._one(x, y, ids, epoch)
        self.progress.step += 1
        self._images += len(x)
        self._clock += time.perf_counter() - began
        self._tick(self.progress, self._images / max(self._clock, 1e-9), self._waited / max(self._clock, 1e-9))
        return stream

    def _stream(self, epoch: int, position: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of one epoch from a position on; the order is a function of (seed, epoch)."""
        order = train_order(len(self.train), self.plan.seed, epoch)
        batches = order[: self.steps_per_epoch * self.batch_size].split(self.batch_size)
        return self.train.stream(list(batches[position:]), self.device)

    def _one(self, x: Tensor, y: Tensor, ids: Tensor, epoch: int) -> None:
        """Augment, attack, descend; adds to the running loss means. A step that is stopped leaves no trace."""
        progress = self.progress
        factor = self.plan.factor((progress.step + 0.5) / progress.max_steps)
        for group, base in zip(self.step.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        torch.manual_seed(step_seed(self.plan.seed, progress.step))
        if self.plan.augment is not None:
            x = augment(x, RowRandom(self.plan.seed, "augment", ids, epoch=epoch), self.plan.augment)
        try:
            terms = self.step(x, y, ids, seed=self.plan.seed, epoch=epoch)
        except NumericsError as error:
            self.offending = {"x": x.detach().cpu().contiguous(), "y": y.cpu(), "ids": ids.cpu()}
            shown = ", ".join(str(i) for i in ids[:8].tolist())
            lr = self.step.optimizer.param_groups[0]["lr"]
            raise NumericsError(f"{error.what} at step {progress.step}", where=f"lr {lr:.4g}, sample ids {shown}, …", hint=error.hint) from None
        for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
            progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + float(value)
        progress.loss_count += 1

    # ---- boundaries --------------------------------------------------------------------------------------------

    def _at_boundary(self, finished: bool) -> None:
        """Validation, record and checkpoint that are due after `step` steps; each at most once per step."""
        progress, plan = self.progress, self.plan
        if progress.step == 0:
            return
        due = finished or progress.step % plan.validate_every == 0
        improved = False
        if due and progress.validated != progress.step:
            improved = self._validate()
        if self._saved != progress.step and (finished or improved or progress.step % plan.save_every == 0):
            self._checkpoint(("last", "best") if improved or not progress.best else ("last",))

    def _validate(self) -> bool:
        """Measure, record, and say whether this is the best model so far."""
        progress, plan = self.progress, self.plan
        epoch = progress.step / self.steps_per_epoch
        row: dict[str, Any] = {"step": progress.step, "epoch": round(epoch, 4), "lr": self.step.optimizer.param_groups[0]["lr"]}
        row |= {name: total / progress.loss_count for name, total in progress.loss_sums.items() if progress.loss_count}
        result: Evaluation | None = None
        if plan.validation is not None and self.val is not None and len(plan.val_positions):
            result = RobustEvaluation(self.step.model, plan.validation, stop=self._stop, say=self._say).run(self.val, plan.val_positions, self.device)
            row |= {"clean_acc": result.clean_acc, "robust_acc": result.robust_acc if plan.validation.attacks else None, "n": result.n}
        row |= {"images_per_second": self._images / max(self._clock, 1e-9), "waiting_share": self._waited / max(self._clock, 1e-9)}
        progress.validated = progress.step
        progress.loss_sums, progress.loss_count = {}, 0
        progress.last = {"step": progress.step, "epoch": row["epoch"], "clean_acc": row.get("clean_acc"), "robust_acc": row.get("robust_acc")}
        self._log(row)
        self._clock = self._waited = 0.0
        self._images = 0
        if result is None:
            return False
        if not progress.best or self._score(progress.last) > self._score(progress.best):
            progress.best = dict(progress.last)
            return True
        return False

    def _score(self, row: dict[str, Any]) -> tuple[float, float]:
        clean, robust = float(row["clean_acc"] or 0), float(row["robust_acc"] or 0)
        return (robust, clean) if self.plan.robust_best else (clean, robust)

    def _checkpoint(self, tags: Sequence[str]) -> None:
        self._save(self.progress, self.groups(), tags)
        self._saved = self.progress.step
