"""One training in one run directory: how it is put together, how it begins or resumes, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file

from robustcli.assembly.cost import passes_per_image
from robustcli.assembly.engine import Engine, make_engine
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.reopen import note_run
from robustcli.assembly.setting import Setting
from robustcli.assembly.trainlog import Examples, Silent, TrainLog, Written
from robustcli.config.written import written_out
from robustcli.data.mixture import JoinedSplit
from robustcli.errors import Interrupted, NumericsError, UsageError
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.resuming import check_same_experiment, newest_checkpoint, progress_from, repoint
from robustcli.jobs.stored import sensible, stored_in
from robustcli.jobs.verb_flags import TrainFlags
from robustcli.models.meta import model_meta
from robustcli.runtime.distributed import Ranks
from robustcli.store.disk import preflight
from robustcli.store.follower import Follower
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.run import Run
from robustcli.store.snapshot import load_checkpoint
from robustcli.store.state import compare_state
from robustcli.terminal.console import Console
from robustcli.training.loop import Trainer
from robustcli.training.trainplan import Progress

_CHECKPOINTS = 2.2  # a save needs the room of two, and some more


class TrainRun:
    """Connects a `Trainer` with one run directory."""

    def __init__(
        self,
        setting: Setting,
        run: Run | Follower,
        console: Console,
        flags: TrainFlags,
        stop: Callable[[], None],
        ranks: Ranks,
        extra: JoinedSplit | None = None,
    ) -> None:
        self.setting, self.run, self.console, self.flags, self.ranks = setting, run, console, flags, ranks
        model = ModelSource.of(setting, flags).to_train(console.warn, console.info)
        meta = model_meta(model, setting.data.classes)
        self.config_tree = written_out(setting.config.model_dump(mode="json"))
        engine = make_engine(setting, model, ranks, stop, console.warn, extra)
        self._asked, self._logs = stop, False
        self.model, self.digest, self.train_split = engine.step.settings.model, engine.digest, engine.train
        self.log = self._open_log(meta, _common(setting, engine))
        self.trainer = Trainer(
            engine.step,
            engine.train,
            engine.val,
            engine.plan,
            setting.device,
            guards=engine.guards,
            save=self.log.save,
            log=self.log.row,
            recall=lambda: load_checkpoint(resolve_checkpoint(run.checkpoints, "best")).groups,
            stop=self._stop,
            say=self._say,
        )
        if engine.val is not None:
            published, positions = (lambda: self.trainer.published), engine.plan.val_positions
            self.log.show(Examples(setting, published, engine.val, positions, stop))

    def _open_log(self, meta: dict[str, Any], common: dict[str, Any]) -> TrainLog:
        """The log of this rank: rank 0 writes, the others have a `Follower` and write nothing."""
        if isinstance(self.run, Follower):
            return Silent()
        return Written(self.run, self.setting, self.config_tree, meta, self.digest, self.console, common)

    def _stop(self) -> None:
        """Raises Interrupted after a signal, GoneError when somebody has taken away what the run writes."""
        self._asked()
        if self._logs:
            self.log.check()

    def _say(self, text: str) -> None:
        self.console.info(text)
        self.log.text(text)

    def train(self) -> Progress:
        """Start or resume, train, write the results."""
        records = self._resume()
        self._fix_budget()
        self._check_disk()
        self.ranks.barrier()  # all have read before one writes
        self._begin(records)
        self._say(self._plan())
        progress = self._to_the_end()
        self.log.finish(progress)
        return progress

    # ---- before the first step -----------------------------------------------------------------------------

    def _begin(self, records: int) -> None:
        """Take the directory: everything is loaded and checked. records: bytes of them that count."""
        self.run.begin()
        if self.ranks.main:
            note_run(self.run.path)
        write_inputs(self.run, self.setting.config)
        self.log.open()
        self._logs = True
        if self.run.resumed:
            self.log.cut(records)

    def _resume(self) -> int:
        """Continue from the newest checkpoint that verifies; without one start from step 0.

        Returns the size of the records in bytes at this state.
        """
        if not self.run.resumed:
            return 0
        snapshot = newest_checkpoint(self.run, self.ranks, self.console)
        if snapshot is None:
            self.console.info("no checkpoint yet: starting from step 0")
            return 0
        where, warn = str(snapshot.path), self.console.warn
        stored = stored_in(snapshot, warn)
        digest = self._digest_for(stored.digest)
        check_same_experiment(stored, self.config_tree, digest, self.flags.override_resume, warn)
        compare_state(self.model.state_dict(), snapshot.groups.get("model", {}), where=where)
        progress = progress_from(stored, self.config_tree, self.ranks.world, warn)
        with sensible(where):
            self.trainer.restore(snapshot.groups, progress, where=where)
        if self.ranks.main:
            repoint(self.run.checkpoints, snapshot.path.name, progress)
        self.console.info(f"resuming at step {progress.step} from {snapshot.path}")
        return progress.log_offset

    def _digest_for(self, known: str) -> str:
        """The digest of the data, over the splits that the run has read: once that was the test split too."""
        data = self.setting.data
        if known == self.digest or data.read_names == data.stored.names:
            return self.digest
        return self.digest.replace(data.digest, data.digest_of(data.stored.names), 1)

    def _fix_budget(self) -> None:
        """Fix the number of steps. Raises UsageError when a resumed run has used more than the budget."""
        if self.trainer.progress.max_steps:
            return
        self.trainer.fix_budget()
        progress = self.trainer.progress  # read late: a probe of minutes puts another object in its place
        pace = progress.pace
        if pace is not None and pace.done >= 1:
            raise UsageError(
                f"the run has used {pace.spent / 60:.3g} of {pace.budget / 60:g} minutes already",
                where="train.minutes",
                hint="ask for more, or start a new run",
            )
        if progress.step > progress.max_steps:
            raise UsageError(
                f"the run has made {progress.step} steps already, and the budget is {progress.max_steps}",
                where="train.steps",
                hint="ask for more, or start a new run",
            )

    def _check_disk(self) -> None:
        tensors = [tensor for group in self.trainer.groups().values() for tensor in group.values()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        preflight(self.run.path, int(_CHECKPOINTS * size))

    def _plan(self) -> str:
        """One line for the user: model, data, losses, steps, precision and attack."""
        trainer, config = self.trainer, self.setting.config
        losses = " + ".join(
            spec.name for spec in (config.objective, *config.regularizers, *config.train.hooks)
        )
        shared = f" over {self.ranks.world} processes" if self.ranks.world > 1 else ""
        computed = "tf32" if config.precision == "tf32" else _word(trainer.step.settings.dtype)
        return (
            f"training {config.model.label} on {self.setting.data.name}: {losses},"
            f" {trainer.progress.max_steps} steps of {trainer.batch_size}{shared}, {computed},"
            f" attack {self._attack()}"
        )

    def _attack(self) -> str:
        step = self.trainer.step.settings
        if step.inner is None:
            return "none"
        where = "on the model itself" if step.search.plain else f"in {_word(step.search.dtype)}"
        return f"{self.setting.config.adversary.name} on {step.inner}, searched {where}"

    # ---- the training --------------------------------------------------------------------------------------

    def _to_the_end(self) -> Progress:
        """Train with a progress bar.

        After a signal the run holds what a resume needs, and after a NaN the batch in which it appeared.
        """
        trainer = self.trainer
        begun = trainer.progress
        try:
            with self.console.progress(begun.max_steps, "training", unit="step", done=begun.step) as bar:
                trainer.tick = lambda progress, rate, waiting: bar.advance(
                    1, total=progress.max_steps, **self._fields(progress, rate, waiting)
                )
                return trainer.run()
        except Interrupted as error:
            raise self._preempted(error) from None
        except NumericsError:
            self._save_offending()
            raise

    def _fields(self, progress: Progress, rate: float, waiting: float) -> dict[str, Any]:
        """The fields of the progress bar. rate: images/s. waiting: share of the time without data."""
        loss = progress.loss_sums.get("loss", 0.0) / max(1, progress.loss_count)
        fields = {}
        if progress.last.get("clean_acc") is not None:
            fields["val"] = f"clean {progress.last['clean_acc']:.1%}"
            if self.trainer.plan.robust_best:
                fields["val"] += f" robust {progress.last['robust_acc']:.1%}"
            if progress.last.get("verified_acc") is not None:
                fields["val"] += f" verified {progress.last['verified_acc']:.1%}"
        spent = {"loss": f"{loss:.3f}", "img/s": f"{rate:.0f}", "waiting for data": f"{waiting:.0%}"}
        return fields | spent

    def _preempted(self, error: Interrupted) -> Interrupted:
        """`error` with the command that resumes; the run's status gets the step and the last checkpoint."""
        last = resolve_checkpoint(self.run.checkpoints, "last").relative_to(self.run.path)
        step = self.trainer.progress.step
        self.run.status(state="preempted", code=error.exit_code, step=step, last_checkpoint=str(last))
        config = self.setting.config
        named = f"--out {self.run.path}" if config.out else f"name={config.name}"
        return Interrupted(
            error.what,
            signum=error.signum,
            where=str(self.run.path),
            hint=f"resume with the same command and --resume ({named})",
        )

    def _save_offending(self) -> None:
        """Save the batch in which a NaN appeared. Each rank saves its own share."""
        if not self.trainer.offending:
            return
        rank = "" if self.ranks.main else f".rank{self.ranks.rank}"
        save_file(self.trainer.offending, self.run.path / f"nan_batch{rank}.safetensors")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _common(setting: Setting, engine: Engine) -> dict[str, Any]:
    """Fields that all records of the run share: data, model, cost of a step, validation attack."""
    common: dict[str, Any] = {
        "data": setting.data.name,
        "model": setting.config.model.label,
        "passes_per_sample": float(passes_per_image(setting)),
    }
    validations = engine.plan.validations
    if validations and validations[0].attacks:
        last = validations[0].attacks[-1]
        common |= {"attack": last.name, "params": dict(last.params)}
    return common
