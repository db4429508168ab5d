"""The training loop: steps, validation, checkpoints, resume.

The file is long by the documentation of one class: a run is read from its start to its end here.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.data.split import Split
from robustcli.errors import GoneError, Interrupted, ResourceError
from robustcli.runtime.device import peak_memory, synchronise
from robustcli.runtime.distributed import Ranks
from robustcli.training.faults import shared_faults
from robustcli.training.feed import Feed, Images
from robustcli.training.guarding import Guards
from robustcli.training.meter import Meter, Pace, Spender
from robustcli.training.published import Published
from robustcli.training.runner import StepRunner
from robustcli.training.saved import Groups, pack_run, unpack_run
from robustcli.training.step import Step
from robustcli.training.trainplan import Progress, TrainPlan
from robustcli.training.validation import Validation

#: Before `minutes` become steps, some steps warm up; then the parts of the run are timed, twice each.
_WARM, _PARTS = 2, 4


class Trainer:
    """Drives training steps through the data. It knows no objective, attack or file format.

    Args:
        step: one training step; holds model, optimiser, hooks and ranks.
        train, val: splits; val may be None.
        plan: what the run does.
        device: where the batches go.
        guards: what watches the validations.
        save: (progress, groups of tensors, tags) -> None; writes a checkpoint.
        log: (row) -> None; takes one validation record as plain JSON.
        recall: () -> the groups of the best checkpoint, for a roll-back.
        stop: raises Interrupted when a signal came.
        say: shows one line to the user.
        clock: () -> seconds; a budget in minutes is spent by it.

    Attributes:
        tick: (progress, images per second, share of time waiting for data) -> None, called after each step.
        progress: what the run remembers between steps.
    """

    def __init__(
        self,
        step: Step,
        train: Split,
        val: Split | None,
        plan: TrainPlan,
        device: torch.device,
        *,
        guards: Guards,
        save: Callable[[Progress, Groups, Sequence[str]], None],
        log: Callable[[dict[str, Any]], None],
        recall: Callable[[], Groups],
        stop: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.step, self.plan, self.device, self.guards = step, plan, device, guards
        self._save, self._log, self._recall, self._stop, self._say = save, log, recall, stop, say
        self.tick: Callable[[Progress, float, float], None] = lambda progress, rate, waiting: None
        self.feed = Feed(train, plan.batch_size, plan.seed, self.ranks, device)
        self.batch_size, self.steps_per_epoch = self.feed.batch_size, self.feed.steps_per_epoch
        self.validation: Validation | None = None
        if plan.validations and val is not None and len(plan.val_positions):
            self.validation = Validation(
                val,
                plan.validations,
                plan.val_positions,
                device,
                self.ranks,
                stop,
                say,
                plan.verified,
                plan.look,
            )
        self.progress = Progress()
        self._run_step = StepRunner(step, plan, say)
        self._published = Published(step, train, plan.seed, self.batch_size, device)
        self._meter, self._clock = Meter(), clock
        self._spender = Spender(self.ranks, plan.validate_every, clock)
        self._saved = -1  # the step of the last checkpoint
        self._rolled_back = False

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.step.settings.ranks

    @property
    def published(self) -> nn.Module:
        """The model that is validated and saved: the averaged weights when there are any."""
        return self._published.model

    @property
    def offending(self) -> dict[str, Tensor]:
        """The images of a step whose loss or gradient was not finite; empty while there is none."""
        return self._run_step.offending

    # ---- state ---------------------------------------------------------------------------------------------

    def groups(self) -> Groups:
        """All tensors a resume needs; `model` is what an evaluation should load."""
        return pack_run(self.step, self.published)

    def restore(self, groups: Groups, progress: Progress, *, where: str = "") -> None:
        """Continue from a checkpoint: the tensors of `groups()` and its progress."""
        unpack_run(self.step, groups, where=where)
        self.step.micro_batch = progress.micro_batch or self.step.micro_batch
        self.guards.load(progress.guards)
        # With another number of processes every rank starts from the sums of rank 0.
        if len(progress.rank_sums) == self.ranks.world:
            progress.loss_sums = dict(progress.rank_sums[self.ranks.rank])
        self.progress, self._saved = progress, progress.step

    # ---- budget --------------------------------------------------------------------------------------------

    def fix_budget(self) -> int:
        """Turn epochs or minutes into a number of steps; returns it.

        Where steps or epochs are counted, the learning rate depends on them and never on the clock, so a
        resumed run repeats it. A budget in minutes is planned anew after each step, see `Pace`.
        """
        unit, amount = self.plan.budget
        if unit == "minutes":
            self._fix_pace(60 * amount)
            return self.progress.max_steps
        steps = amount
        if unit == "epochs":
            steps = round(amount * self.steps_per_epoch)
        self.progress.pace, self.progress.max_steps = None, max(1, int(steps))
        return self.progress.max_steps

    def _fix_pace(self, seconds: float) -> None:
        """Plan a run of so many seconds, this probe included. A run that goes on keeps what it has spent."""
        began, before, every = self._clock(), self.progress.pace, self.plan.validate_every
        costs, validation = self._probed_costs(seconds), 0.0
        if self.validation is not None:
            validation = self.validation.seconds(self.published, self._clock)
        one = sum(costs) / len(costs)
        progress = self.progress  # the probe has put it back
        spent = progress.step * (one + validation / every) if before is None else before.spent
        pace = Pace(seconds, spent + self._clock() - began, costs, validation=validation)
        pace.done = min(1.0, spent / seconds)
        self._spender.begin(progress, pace)
        self._say(
            f"{seconds / 60:g} minutes are about {progress.max_steps} steps of {self.batch_size} images "
            f"({one:.3g} s a step, {validation:.2g} s a validation); the plan follows the clock"
        )

    def _probed_costs(self, seconds: float) -> list[float]:
        """Seconds of a step at the middles of equal parts of the run, measured on a few steps.

        One part is measured, the end of the run, where more would take a fiftieth of `seconds`. The run is
        restored afterwards. Only its micro-batch may have become smaller.
        """
        before = {name: {key: t.clone() for key, t in group.items()} for name, group in self.groups().items()}
        remembered, saved = copy.deepcopy(self.progress), self._saved
        batches = self.feed.endless()
        slowest = min(self._timed(batches, 1.0) for _ in range(_WARM))
        costs = [self._timed(batches, 1.0)]
        if self.ranks.broadcast(slowest * 2 * _PARTS < seconds / 50):
            shares = [(part + 0.5) / _PARTS for part in range(_PARTS)]
            rounds = [[self._timed(batches, t) for t in shares] for _ in range(2)]
            costs = [min(pair) for pair in zip(*rounds, strict=True)]
        remembered.micro_batch = self.progress.micro_batch
        self.restore(before, remembered)
        self._saved = saved
        return [max(cost, 1e-6) for cost in self.ranks.broadcast(costs)]

    def _timed(self, batches: Iterator[Images], t: float) -> float:
        """Seconds of one step at the share t of the run, on the next batch."""
        images = next(batches)
        synchronise(self.device)
        began = self._clock()
        self._run_step(images, 0, t, self.progress)
        synchronise(self.device)
        return self._clock() - began

    # ---- run -----------------------------------------------------------------------------------------------

    def run(self) -> Progress:
        """Train to the end of the budget.

        On a signal the state after the last whole step is saved, and Interrupted is raised. So it is when
        somebody takes away what the run writes, where one process trains.
        """
        if not self.progress.max_steps:
            self.fix_budget()
        progress = self.progress
        self._spender.begin(progress, progress.pace)
        try:
            self._run()
        except Interrupted as error:
            if self._saved != progress.step:
                self._checkpoint(("last",))
            raise Interrupted(
                f"preempted at step {progress.step} of {progress.max_steps}",
                signum=error.signum,
                hint="resume with --resume",
            ) from None
        except GoneError:
            if self.ranks.world == 1 and self._saved != progress.step:
                with suppress(ResourceError):  # the first failure is the one to report
                    self._checkpoint(("last",))
            raise
        return progress

    def _run(self) -> None:
        progress = self.progress
        stream: Iterator[Images] | None = None
        while True:
            with shared_faults(self.ranks):
                self._stop()
            finished = progress.step >= progress.max_steps
            before = progress.validated
            self._at_boundary(finished)
            self._spender.paused(progress, validated=progress.validated != before)
            if finished or progress.ended:
                return
            if progress.step >= progress.max_steps:
                continue  # the validation has used up the minutes
            epoch, position = divmod(progress.step, self.steps_per_epoch)
            if stream is None or position == 0:
                stream = self.feed.stream(epoch, position)
            self._advance(stream, epoch)

    def _advance(self, stream: Iterator[Images], epoch: int) -> None:
        """Fetch the next batch and make one step on it."""
        with self._meter.step(self.batch_size):
            with self._meter.waiting():
                images = next(stream)
            self._run_step(images, epoch, self.progress.share(self.progress.step), self.progress)
            self.progress.step += 1
        self._spender.stepped(self.progress)
        self.tick(self.progress, self._meter.rate, self._meter.waiting_share)

    # ---- between two steps ---------------------------------------------------------------------------------

    def _at_boundary(self, finished: bool) -> None:
        """Validate and save what is due after this step. finished: the budget is used up.

        Each step is validated at most once. It is saved at most once, unless a validation or a roll-back
        changes what to save.
        """
        progress, plan = self.progress, self.plan
        if progress.step == 0:
            return
        improved = outdated = False
        validation_due = finished or progress.step % plan.validate_every == 0
        if validation_due and progress.validated != progress.step:
            # A step that was saved when its validation was interrupted is saved again, with its record.
            outdated = self._saved == progress.step
            improved = self._validate(finished)
        save_due = finished or bool(progress.ended) or progress.step % plan.save_every == 0
        if improved or outdated or self._rolled_back or (save_due and self._saved != progress.step):
            tags = ["last"]
            if improved or not progress.best:
                tags.append("best")
            self._checkpoint(tags)
        self._rolled_back = False

    def _validate(self, finished: bool) -> bool:
        """Measure, log, let the guards judge; returns whether this is the best model so far."""
        progress = self.progress
        row = self._position() | self._mean_losses()
        self._published.refresh()
        measured = self._measured(row, finished)
        row |= measured
        row |= {"images_per_second": self._meter.rate, "waiting_share": self._meter.waiting_share}
        row["peak_memory"] = max(self.ranks.gather(peak_memory(self.device)))
        self._log(row)  # before the progress changes: a record that is not written is not made
        progress.validated = progress.step
        progress.clear_losses()
        kept = ("step", "epoch", "clean_acc", "robust_acc", "n", "chance")
        progress.last = {key: row.get(key) for key in kept}
        if self.plan.verified:
            progress.last["verified_acc"] = row.get("verified_acc")
        self._meter.clear()
        improved = bool(measured) and self._is_best(row)
        if improved:
            progress.best = dict(progress.last)
        self._guard(row, improved)
        self.ranks.barrier()  # rank 0 may have written for long
        return improved

    def _measured(self, row: dict[str, Any], finished: bool) -> dict[str, Any]:
        """What the validation finds. It looks deeper where that is due and where the run ends.

        row: the rest of the record.
        """
        if self.validation is None:
            return {}
        measured, plan = self.validation(self.published), self.plan
        if plan.look and (plan.looks(self.progress.step, finished) or self._ends(row | measured)):
            measured |= self.validation.look_deeper(self.published)
        return measured

    def _ends(self, row: dict[str, Any]) -> bool:
        """Whether the run ends with this record: by a guard, or because its minutes are used up."""
        t, whole = self._moment()
        if self.guards.ends(row, self._is_best(row), t, whole=whole):
            return True
        return self._spender.used_up(self.progress)

    def _position(self) -> dict[str, Any]:
        """Step, epoch, and the learning rate of the last step."""
        step = self.progress.step
        # Not read from the optimiser: a run that resumes here has made no step and set no rate yet.
        lr = self._run_step.learning_rate(self.progress.share(step - 1))
        return {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "lr": lr}

    def _mean_losses(self) -> dict[str, float]:
        """Means of the loss terms over steps and ranks since the last validation."""
        means = self.progress.mean_losses()
        parts = self.ranks.gather(means)
        return {name: sum(part[name] for part in parts) / len(parts) for name in means}

    def _is_best(self, row: dict[str, Any]) -> bool:
        best = self.progress.best
        better = not best or self.plan.score(row) > self.plan.score(best)
        return better and self.guards.may_be_best(row)

    def _moment(self) -> tuple[float, bool]:
        """(share of the run that is done, whether the attack has its whole radius)."""
        t = self.progress.done
        _, ball = self.step.settings.threat(t)
        return t, ball.eps == self.step.settings.ball.eps

    def _guard(self, row: dict[str, Any], improved: bool) -> None:
        """Act on the verdict of the guards.

        A roll-back loads the best checkpoint, and the run goes on from the same step number.
        """
        progress = self.progress
        t, whole = self._moment()
        verdict = self.guards.judge(row, improved, t, whole=whole)
        for text in verdict.alarms:
            self._say(text)
            progress.alarms.append(text)
        if verdict.forget:
            progress.best = {}
        if verdict.rollback and not improved and progress.best:
            unpack_run(self.step, self._recall(), where="roll-back")
            self._rolled_back = True
        progress.guards = self.guards.state()
        progress.ended = verdict.stop

    def _checkpoint(self, tags: Sequence[str]) -> None:
        progress = self.progress
        self._published.refresh()
        self._spender.charge(progress)
        groups = self.groups()  # on every rank: each may hold a part of the step's state
        progress.world, progress.rank_sums = self.ranks.world, []
        if self.ranks.world > 1:
            progress.rank_sums = self.ranks.gather(progress.loss_sums)
        if self.ranks.main:
            self._save(progress, groups, tags)
        self.ranks.barrier()
        self._saved = progress.step
