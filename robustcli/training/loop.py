"""The training loop: steps, validation, checkpoints, resume."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.data.mixture import epoch_batches, epoch_size
from robustcli.data.sampling import train_order
from robustcli.data.split import Split
from robustcli.errors import DataError, Interrupted, NumericsError
from robustcli.runtime.device import peak_memory, synchronise
from robustcli.runtime.distributed import Ranks
from robustcli.training.faults import together
from robustcli.training.guarding import Guards
from robustcli.training.meter import Meter
from robustcli.training.remedies import less_memory, located
from robustcli.training.saved import Groups, pack_run, step_seed, unpack_run
from robustcli.training.steps import MinMax
from robustcli.training.trainplan import Progress, TrainPlan
from robustcli.training.validation import Validation

#: A probe for `minutes` runs this many warm-up and measured steps on a copy of the state.
_PROBE = (2, 6)
_PIXELS = 2048  # training images from which averaged weights get their BatchNorm statistics


class Trainer:
    """Drives training steps through the data; knows no objective, attack or file format.

    Args:
        step: one training step; holds model, optimiser, hooks and ranks.
        train, val: splits; val may be None.
        plan: what to do.
        device: where the batches go.
        guards: what watches the validations.
        save: (progress, groups of tensors, tags) -> None: write a checkpoint.
        log: (row) -> None: one training record as plain JSON.
        recall: () -> the groups of the best checkpoint, for a roll-back.
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
        guards: Guards,
        save: Callable[[Progress, Groups, Sequence[str]], None],
        log: Callable[[dict[str, Any]], None],
        recall: Callable[[], Groups],
        tick: Callable[[Progress, float, float], None] = lambda progress, rate, waiting: None,
        stop: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.step, self.train, self.plan, self.device, self.guards = step, train, plan, device, guards
        self._save, self._log, self._recall, self.tick, self._stop, self._say = (
            save,
            log,
            recall,
            tick,
            stop,
            say,
        )
        self.batch_size = min(plan.batch_size, epoch_size(train))
        if not self.batch_size:
            raise DataError("the training split is empty")
        if self.batch_size % self.ranks.world:
            raise DataError(
                f"a batch of {self.batch_size} images cannot be shared by {self.ranks.world} processes",
                hint="choose train.batch_size accordingly",
            )
        self.steps_per_epoch = epoch_size(train) // self.batch_size
        self.validation: Validation | None = None
        if plan.validation is not None and val is not None and len(plan.val_positions):
            self.validation = Validation(
                val, plan.validation, plan.val_positions, device, self.ranks, stop, say
            )
        self._base_lrs = [float(group["lr"]) for group in step.optimizer.param_groups]
        self.progress = Progress()
        self.offending: dict[str, Tensor] = {}
        self._noted: set[str] = set()
        self._saved = -1
        self._rolled_back = False
        self._meter = Meter()

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.step.ranks

    @property
    def published(self) -> nn.Module:
        """What is validated and saved as the model: the averaged weights when there are any."""
        found = [averaged for hook in self.step.descent.hooks if (averaged := hook.averaged()) is not None]
        return found[-1] if found else self.step.model

    # ---- state -------------------------------------------------------------------------------------------------

    def groups(self) -> Groups:
        """All tensors a resume needs; `model` is what an evaluation should load."""
        return pack_run(self.step, self.published)

    def restore(self, groups: Groups, progress: Progress, *, where: str = "") -> None:
        """Continue from a checkpoint: the tensors of `groups()` and its progress."""
        unpack_run(self.step, groups, where=where)
        self.step.micro_batch = progress.micro_batch or self.step.micro_batch
        self.guards.load(progress.guards)
        if (
            len(progress.rank_sums) == self.ranks.world
        ):  # in another number of processes all go on from those of rank 0
            progress.loss_sums = dict(progress.rank_sums[self.ranks.rank])
        self.progress, self._saved = progress, progress.step

    # ---- budget ------------------------------------------------------------------------------------------------

    def fix_budget(self) -> int:
        """Turn epochs or minutes into a number of steps, once; the schedule runs on steps, so a resume repeats it."""
        unit, amount = self.plan.budget
        if unit == "minutes":
            steps = self.ranks.broadcast(self._steps_for(60 * amount))
        else:
            steps = int(amount) if unit == "steps" else round(amount * self.steps_per_epoch)
        self.progress.max_steps = max(1, int(steps))
        return self.progress.max_steps

    def _steps_for(self, seconds: float) -> int:
        """Steps that fit, by timing a few on a copy of the state; validation is charged by its share of passes."""
        before = {name: {key: t.clone() for key, t in group.items()} for name, group in self.groups().items()}
        remembered, saved = copy.deepcopy(self.progress), self._saved
        warm, counted = _PROBE
        self.progress.max_steps = 10**9
        began = time.perf_counter()
        endless = (batch for epoch in itertools.count() for batch in self._stream(epoch, 0))
        for k, (x, y, ids) in enumerate(itertools.islice(endless, warm + counted)):
            if k == warm:
                synchronise(self.device)
                began = time.perf_counter()
            self._one(x, y, ids, 0, t=1.0)  # the whole attack, with all that a warm-up leaves out at first
        synchronise(self.device)
        per_step = (time.perf_counter() - began) / counted
        remembered.micro_batch = self.progress.micro_batch
        self.restore(before, remembered)
        self._saved = saved
        rounds = (
            self.validation.seconds(self.published) / self.plan.validate_every
            if self.validation is not None
            else 0.0
        )
        steps = int(seconds / (per_step + rounds))
        self._say(
            f"{seconds / 60:g} minutes are {steps} steps of {self.batch_size} images ({per_step:.3g} s a step, {rounds:.2g} s of validation)"
        )
        return steps

    # ---- run ---------------------------------------------------------------------------------------------------

    def run(self) -> Progress:
        """Train to the end of the budget. On a signal the last step boundary is saved and Interrupted goes on up."""
        if not self.progress.max_steps:
            self.fix_budget()
        progress = self.progress
        stream: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        try:
            while True:
                together(self.ranks, self._stop)
                finished = progress.step >= progress.max_steps
                self._at_boundary(finished)
                if finished or progress.ended:
                    return progress
                epoch, position = divmod(progress.step, self.steps_per_epoch)
                if stream is None or position == 0:
                    stream = self._stream(epoch, position)
                self._advance(stream, epoch)
        except Interrupted as error:
            if self._saved != progress.step:
                self._checkpoint(("last",))
            raise Interrupted(
                f"preempted at step {progress.step} of {progress.max_steps}",
                signum=error.signum,
                hint="resume with --resume",
            ) from None

    def _advance(self, stream: Iterator[tuple[Tensor, Tensor, Tensor]], epoch: int) -> None:
        with self._meter.step(self.batch_size):
            with self._meter.waiting():
                x, y, ids = next(stream)
            self._one(x, y, ids, epoch)
            self.progress.step += 1
        self.tick(self.progress, self._meter.rate, self._meter.waiting_share)

    def _stream(self, epoch: int, position: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This rank's share of the batches of one epoch, from a position on; the order is a function of (seed, epoch)."""
        batches = epoch_batches(self.train, self.batch_size, self.plan.seed, epoch)[position:]
        return self.train.stream(
            [batch.chunk(self.ranks.world)[self.ranks.rank] for batch in batches], self.device
        )

    def _one(self, x: Tensor, y: Tensor, ids: Tensor, epoch: int, t: float | None = None) -> None:
        """Augment, attack, descend, at the share t of the run; adds to the running loss means. A step that is stopped leaves no trace."""
        progress, plan = self.progress, self.plan
        t = self._share(progress.step) if t is None else t
        factor = plan.factor(t)
        for group, base in zip(self.step.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        x, y_soft = plan.augmented(x, y, ids, epoch)
        while True:
            torch.manual_seed(step_seed(plan.seed, progress.step) + self.ranks.rank)
            try:
                terms = self.step(x, y, ids, seed=plan.seed, epoch=epoch, y_soft=y_soft, progress=t)
                break
            except torch.OutOfMemoryError:
                progress.micro_batch = less_memory(self.step, len(x), plan.oom)
                self._say(
                    f"out of memory: going on with {progress.micro_batch} images in a pass; gradients are added up to the same batch"
                )
            except NumericsError as error:
                if not error.elsewhere:
                    self.offending = {"x": x.detach().cpu().contiguous(), "y": y.cpu(), "ids": ids.cpu()}
                raise located(error, progress.step, self._lr, ids) from None
        for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
            progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + float(value)
        progress.loss_count += 1
        for note in (
            {
                self.step.twin_note and f"the attack searches on the model itself: {self.step.twin_note}",
                self.step.forward.note,
            }
            - self._noted
            - {""}
        ):
            self._noted.add(note)
            self._say(note)

    def _share(self, step: int) -> float:
        """t in (0, 1]: how much of the run is done in the middle of the step with this number."""
        return min((step + 0.5) / self.progress.max_steps, 1.0)

    @property
    def _lr(self) -> float:
        return float(self.step.optimizer.param_groups[0]["lr"])

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
        regular = finished or bool(progress.ended) or progress.step % plan.save_every == 0
        if (
            improved or self._rolled_back or (self._saved != progress.step and regular)
        ):  # a step saved by an interrupted validation is saved again
            self._checkpoint(("last", "best") if improved or not progress.best else ("last",))
        self._rolled_back = False

    def _validate(self) -> bool:
        """Measure, record, let the guards judge, and say whether this is the best model so far."""
        progress = self.progress
        epoch = progress.step / self.steps_per_epoch
        # Not the optimiser's own: a run that resumes right here has made no step yet.
        lr = self._base_lrs[0] * self.plan.factor(self._share(progress.step - 1))
        row: dict[str, Any] = {"step": progress.step, "epoch": round(epoch, 4), "lr": lr}
        row |= self._mean_losses()
        self._refresh()
        measured = self.validation(self.published) if self.validation is not None else {}
        row |= measured
        row |= {"images_per_second": self._meter.rate, "waiting_share": self._meter.waiting_share}
        row["peak_memory"] = max(self.ranks.gather(peak_memory(self.device)))
        progress.validated = progress.step
        progress.loss_sums, progress.loss_count = {}, 0
        progress.last = {
            "step": progress.step,
            "epoch": row["epoch"],
            "clean_acc": row.get("clean_acc"),
            "robust_acc": row.get("robust_acc"),
        }
        self._log(row)
        self._meter.clear()
        improved = bool(measured) and (
            not progress.best or self._score(progress.last) > self._score(progress.best)
        )
        if improved:
            progress.best = dict(progress.last)
        self._guard(row, improved)
        self.ranks.barrier()  # rank 0 may have written for long
        return improved

    def _mean_losses(self) -> dict[str, float]:
        progress = self.progress
        means = {
            name: total / progress.loss_count
            for name, total in progress.loss_sums.items()
            if progress.loss_count
        }
        parts = self.ranks.gather(means)
        return {name: sum(part[name] for part in parts) / len(parts) for name in means}

    def _guard(self, row: dict[str, Any], improved: bool) -> None:
        """What the guards say of this validation; a roll-back takes the best model's state and goes on from the same step."""
        progress = self.progress
        t = min(1.0, progress.step / progress.max_steps)
        verdict = self.guards.judge(row, improved, t, whole=self.step.threat(t)[1].eps == self.step.ball.eps)
        for text in verdict.alarms:
            self._say(text)
            progress.alarms.append(text)
        if verdict.rollback and not improved and progress.best:
            unpack_run(self.step, self._recall(), where="roll-back")
            self._rolled_back = True
        progress.guards = self.guards.state()
        progress.ended = verdict.stop

    def _refresh(self) -> None:
        for hook in self.step.descent.hooks:
            hook.refresh(self._pixels())

    def _pixels(self) -> Iterator[Tensor]:
        """Training pixels in a fixed order, the same on every rank: what averaged weights take their BatchNorm statistics from."""
        order = train_order(len(self.train), self.plan.seed, 0)[:_PIXELS]
        batches = list(order.split(min(self.batch_size, 256)))
        if len(batches) > 1 and len(batches[-1]) < len(batches[0]):
            batches.pop()  # each batch has the same weight in the mean
        for x, _, _ in self.train.stream(batches, self.device):
            yield x

    def _score(self, row: dict[str, Any]) -> tuple[float, float]:
        clean, robust = float(row["clean_acc"] or 0), float(row["robust_acc"] or 0)
        return (robust, clean) if self.plan.robust_best else (clean, robust)

    def _checkpoint(self, tags: Sequence[str]) -> None:
        self._refresh()
        groups = self.groups()  # on every rank: the step may have parts of its state on each
        self.progress.world = self.ranks.world
        self.progress.rank_sums = self.ranks.gather(self.progress.loss_sums) if self.ranks.world > 1 else []
        if self.ranks.main:
            self._save(self.progress, groups, tags)
        self.ranks.barrier()
        self._saved = self.progress.step
