"""`robustcli train`: a configuration in, a run directory with the best checkpoint out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from robustcli.assembly.compose import Setting, model_to_train, prepare
from robustcli.assembly.cost import passes_per_image, training_plan
from robustcli.assembly.engine import Engine, make_engine
from robustcli.assembly.origin import pinned
from robustcli.assembly.reopen import found_by_name, note_run, opening
from robustcli.assembly.trainlog import Examples, Silent, TrainLog, Written
from robustcli.config.dump import dump_config
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.config.spec import ModelConfig
from robustcli.errors import Interrupted, NumericsError, UsageError
from robustcli.models.meta import model_meta
from robustcli.runtime.device import pick_device
from robustcli.runtime.distributed import Ranks, join, local_device, solo
from robustcli.runtime.seed import environment
from robustcli.runtime.signals import StopFlag
from robustcli.store.disk import preflight
from robustcli.store.retention import point, resolve_checkpoint, sweep
from robustcli.store.run import Follower, Run
from robustcli.store.rundir import open_run
from robustcli.store.snapshot import latest_good, load_checkpoint
from robustcli.store.state import compare_state
from robustcli.terminal.console import Console
from robustcli.training.loop import Trainer
from robustcli.training.resume import check_resume
from robustcli.training.trainplan import Progress


@dataclass(frozen=True)
class TrainFlags:
    """What only the command line says of a training run."""

    resume: bool = False
    overwrite: bool = False
    override_resume: Sequence[str] = ()
    dry_run: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


def train(loaded: Loaded, console: Console, flags: TrainFlags) -> dict[str, Any]:
    """Train as configured; returns the `train` document of the machine contract."""
    config = loaded.config
    began = time.perf_counter()
    if flags.dry_run:
        setting = prepare(pinned(config), console)
        model = model_to_train(setting, plugin=flags.plugin, allow_pickle=flags.allow_pickle)
        make_engine(
            setting, model, solo(), lambda: None, console.warn
        )  # what cannot be put together is found here too
        return training_plan(setting, model, console)
    config = config.model_copy(update={"device": local_device(config.device)})
    with join(pick_device(config.device)) as ranks:
        console = console if ranks.main else Console(quiet=True)
        with _open(config, flags, ranks) as run, StopFlag() as stop:
            config = _settled(config, run, ranks, console)
            try:
                setting = prepare(config, console)
            except Interrupted:  # there is nothing to save yet, and --resume begins anew
                run.status(resumable=True)
                raise
            training = TrainRun(setting, run, console, flags, stop.check, ranks)
            document = _document(training, training.go(), began)
            run.write_json(
                "summary.json",
                {"schema_version": 1, "ok": True, "verb": "train", **document, "seed": config.seed},
            )
            run.status(state="done", code=0, step=document["steps"])
            ranks.barrier()
    return document


def _open(config: Config, flags: TrainFlags, ranks: Ranks) -> Run | Follower:
    """Rank 0 opens the run directory and holds its lock; the others learn where it is and write nothing."""
    if not ranks.main:
        path, resumed = ranks.broadcast(None)
        return Follower(Path(path), resumed=resumed)
    asked = opening(config.out, flags.resume, flags.overwrite)
    run = open_run(
        "train",
        config.name,
        out=asked.out,
        resume=asked.resume,
        overwrite=asked.overwrite,
        numbered=config.out is None,
    )
    note_run(run.path)
    if found_by_name():
        run.keep()
    ranks.broadcast([str(run.path), run.resumed])
    return run


def _settled(config: Config, run: Run | Follower, ranks: Ranks, console: Console) -> Config:
    """The configuration with the model that rank 0 finds behind ``latest``, the same on all ranks."""
    found = (
        pinned(config, run.path if run.resumed else None, console.info).model.model_dump(mode="json")
        if ranks.main
        else None
    )
    return config.model_copy(update={"model": ModelConfig.model_validate(ranks.broadcast(found))})


def _document(training: TrainRun, result: Progress, began: float) -> dict[str, Any]:
    best, last = result.best or result.last, result.last
    return {
        "run": str(training.run.path),
        "seconds": round(time.perf_counter() - began, 3),
        "best": {key: best.get(key) for key in ("epoch", "clean_acc", "robust_acc")},
        "last": {key: last.get(key) for key in ("epoch", "clean_acc", "robust_acc")},
        "checkpoint": str(resolve_checkpoint(training.run.checkpoints, "best")),
        "steps": result.step,
        "ended": result.ended or "budget",
        "robust_overfitting": round(training.trainer.guards.gap / 100, 6),
        "alarms": list(result.alarms),
    }


class TrainRun:
    """Ties a `Trainer` to one run directory."""

    def __init__(
        self,
        setting: Setting,
        run: Run | Follower,
        console: Console,
        flags: TrainFlags,
        stop: Callable[[], None],
        ranks: Ranks,
    ) -> None:
        self.setting, self.run, self.console, self.flags, self.ranks = setting, run, console, flags, ranks
        model = model_to_train(setting, plugin=flags.plugin, allow_pickle=flags.allow_pickle)
        meta = model_meta(model, setting.data.classes)  # type: ignore[arg-type]
        self.config_tree = setting.config.model_dump(mode="json")
        engine = make_engine(setting, model, ranks, stop, console.warn)
        self.model, self.digest = engine.step.settings.model, engine.digest
        about = _common(setting, engine)
        self.log: TrainLog = (
            Written(run, setting, self.config_tree, meta, self.digest, console, about)
            if isinstance(run, Run)
            else Silent()
        )
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
            stop=stop,
            say=self._say,
        )
        if engine.val is not None:
            self.log.show(
                Examples(setting, lambda: self.trainer.published, engine.val, engine.plan.val_positions, stop)
            )

    def _say(self, text: str) -> None:
        self.console.info(text)
        self.log.text(text)

    def go(self) -> Progress:
        """Start or resume, train, write the results."""
        self._resume()
        self.ranks.barrier()  # all have read before one writes
        self.run.write_text(
            "config.resolved.yaml", dump_config(self.setting.config.model_copy(update={"out": None}))
        )
        self.run.write_json("env.json", environment())
        trainer = self.trainer
        if not trainer.progress.max_steps:
            trainer.fix_budget()
            if trainer.progress.step > trainer.progress.max_steps:
                done, asked = trainer.progress.step, trainer.progress.max_steps
                hint = "ask for more, or start a new run"
                raise UsageError(
                    f"the run has made {done} steps already, and the budget is {asked}",
                    where="train.steps",
                    hint=hint,
                )
        self._say(self._plan())
        size = sum(
            t.numel() * t.element_size() for group in trainer.groups().values() for t in group.values()
        )
        preflight(self.run.path, int(2.2 * size))
        try:
            with self.console.progress(
                trainer.progress.max_steps, "training", done=trainer.progress.step
            ) as bar:
                trainer.tick = lambda progress, rate, waiting: bar.advance(
                    1, **self._fields(progress, rate, waiting)
                )
                result = trainer.run()
        except Interrupted as error:
            last = str(resolve_checkpoint(self.run.checkpoints, "last").relative_to(self.run.path))
            self.run.status(
                state="preempted", code=error.exit_code, step=trainer.progress.step, last_checkpoint=last
            )
            where = (
                f"--out {self.run.path}" if self.setting.config.out else f"name={self.setting.config.name}"
            )
            raise Interrupted(
                error.what,
                signum=error.signum,
                where=str(self.run.path),
                hint=f"resume with the same command and --resume ({where})",
            ) from None
        except NumericsError:
            if trainer.offending:  # each rank the batch that it saw
                name = (
                    "nan_batch.safetensors"
                    if self.ranks.main
                    else f"nan_batch.rank{self.ranks.rank}.safetensors"
                )
                save_file(trainer.offending, self.run.path / name)
            raise
        self.log.finish(result)
        return result

    def _plan(self) -> str:
        step, progress, config = self.trainer.step.settings, self.trainer.progress, self.setting.config
        where = "on the model itself" if step.search.plain else f"in {_word(step.search.dtype)}"
        inner = "none" if step.inner is None else f"{config.adversary.name} on {step.inner}, searched {where}"
        around = [spec.name for spec in (*config.regularizers, *config.train.hooks)]
        computed = "tf32" if config.precision == "tf32" else _word(step.dtype)
        shared = f" over {self.ranks.world} processes" if self.ranks.world > 1 else ""
        return (
            f"training {config.model.name} on {self.setting.data.name}: {config.objective.name}{''.join(f' + {name}' for name in around)}, "
            f"{progress.max_steps} steps of {self.trainer.batch_size}{shared}, {computed}, attack {inner}"
        )

    def _fields(self, progress: Progress, rate: float, waiting: float) -> dict[str, Any]:
        loss = progress.loss_sums.get("loss", 0.0) / progress.loss_count if progress.loss_count else 0.0
        fields = {"loss": f"{loss:.3f}", "img/s": f"{rate:.0f}", "waiting for data": f"{waiting:.0%}"}
        if progress.last.get("clean_acc") is not None:
            fields["val"] = f"{progress.last['clean_acc']:.1%}" + (
                f"/{progress.last['robust_acc']:.1%}" if self.trainer.plan.robust_best else ""
            )
        return fields

    def _resume(self) -> None:
        """Continue from the newest checkpoint that verifies; a run without one starts anew."""
        if not self.run.resumed:
            return
        if self.ranks.main:
            for stale in sweep(self.run.checkpoints):
                self.console.info(f"removed {stale.name}, left by an interrupted save")
        self.ranks.barrier()
        snapshot = latest_good(self.run.checkpoints, self.console.warn)
        if snapshot is None:
            self.console.info("no checkpoint yet: starting from step 0")
            self.log.cut(0)
            return
        stored: Mapping[str, Any] = snapshot.meta
        if stored.get("data", {}).get("digest") != self.digest and "data" not in self.flags.override_resume:
            raise UsageError(
                "the data is not the data of this run (its digest differs)",
                hint="restore it, or add --override-resume data",
                code="E-RESUME",
            )
        check_resume(
            _completed(stored["config"]), self.config_tree, self.flags.override_resume, self.console.warn
        )
        compare_state(self.model.state_dict(), snapshot.groups["model"], where=str(snapshot.path))
        progress = Progress(**stored["progress"])
        if progress.world != self.ranks.world:
            self.console.warn(
                f"the run had {progress.world} processes and goes on with {self.ranks.world}: close to, but not bitwise, the same training"
            )
        if any(
            stored["config"]["train"].get(key) != self.config_tree["train"].get(key)
            for key in ("patience", "overfitting", "steps", "minutes", "epochs")
        ):
            progress.ended = ""  # what ended the run may no longer hold
        if self._budget(stored["config"]) != self._budget(self.config_tree):
            progress.max_steps = 0
        self.trainer.restore(snapshot.groups, progress, where=str(snapshot.path))
        self._repoint(snapshot.path.name, progress)
        self.log.cut(progress.log_offset)
        self.console.info(f"resuming at step {progress.step} from {snapshot.path}")

    def _repoint(self, name: str, progress: Progress) -> None:
        """Move the pointers that a kill between the checkpoint and its pointers left behind: no save of this step comes again."""
        if self.ranks.main:
            for tag in (
                ("last", "best") if progress.best.get("step", progress.step) == progress.step else ("last",)
            ):
                point(self.run.checkpoints, tag, name)

    @staticmethod
    def _budget(tree: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(tree["train"].get(unit) for unit in ("steps", "minutes", "epochs"))


def _completed(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored configuration with the defaults of keys that came later, under which it was trained; as it is when it is no longer valid."""
    try:
        return Config.model_validate(tree).model_dump(mode="json")
    except ValidationError:
        return tree


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _common(setting: Setting, engine: Engine) -> dict[str, Any]:
    """Fields that all records of the run share: the validation's attack, and what a step costs."""
    calls = engine.plan.validation.attacks if engine.plan.validation is not None else []
    about = {"attack": calls[-1].name, "params": dict(calls[-1].params)} if calls else {}
    return {
        **about,
        "data": setting.data.name,
        "model": setting.config.model.name,
        "passes_per_sample": float(passes_per_image(setting)),
    }
