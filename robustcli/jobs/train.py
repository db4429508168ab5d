"""`robustcli train`: a configuration in, a run directory with the best checkpoint out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli import registry
from robustcli.config.dump import dump_config
from robustcli.config.load import Loaded
from robustcli.errors import Interrupted, NumericsError, UsageError
from robustcli.jobs.compose import Setting, bound, call_with, choose, eval_plan, fresh_model, is_reference, make_search, model_from, move, prepare
from robustcli.jobs.plan import training_plan
from robustcli.models import model_meta
from robustcli.records import TrainRow, train_rows
from robustcli.reporting.summary import train_summary
from robustcli.reporting.tables import train_table, write_csv
from robustcli.runtime.atomic import JsonLines
from robustcli.runtime.checkpoint import compare_state, latest_good, resolve_checkpoint, save_checkpoint, sweep
from robustcli.runtime.console import Console
from robustcli.runtime.disk import preflight
from robustcli.runtime.precision import resolve
from robustcli.runtime.run import Run
from robustcli.runtime.rundir import open_run
from robustcli.runtime.seed import environment
from robustcli.runtime.signals import StopFlag
from robustcli.training.loop import Progress, Trainer, TrainPlan
from robustcli.training.resume import check_resume
from robustcli.training.steps import MinMax


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
        setting = prepare(config, console)
        return training_plan(setting, _model(setting, flags), console)
    with open_run("train", config.name, out=config.out, resume=flags.resume, overwrite=flags.overwrite) as run, StopFlag() as stop:
        setting = prepare(config, console)
        result = TrainRun(setting, run, console, flags, stop.check).go()
        best, last = result.best or result.last, result.last
        document = {
            "run": str(run.path),
            "seconds": round(time.perf_counter() - began, 3),
            "best": {key: best.get(key) for key in ("epoch", "clean_acc", "robust_acc")},
            "last": {key: last.get(key) for key in ("epoch", "clean_acc", "robust_acc")},
            "checkpoint": str(resolve_checkpoint(run.checkpoints, "best")),
        }
        run.write_json("summary.json", {"schema_version": 1, "ok": True, "verb": "train", **document, "steps": result.step, "seed": config.seed})
        run.status(state="done", code=0, step=result.step)
    return document


def _model(setting: Setting, flags: TrainFlags) -> nn.Module:
    """The model to train: new, or from weights (fine-tuning)."""
    spec = setting.config.model
    if flags.plugin is None and not is_reference(spec.name) and spec.weights is None:
        model: nn.Module = fresh_model(setting)
    else:
        model = model_from(setting, plugin=flags.plugin, allow_pickle=flags.allow_pickle, num_classes=len(setting.data.classes))
    return move(model, setting.device, setting.config.train.channels_last)


class TrainRun:
    """Ties a `Trainer` to one run directory: checkpoints, log, status, pictures."""

    def __init__(self, setting: Setting, run: Run, console: Console, flags: TrainFlags, stop: Callable[[], None]) -> None:
        self.setting, self.run, self.console, self.flags = setting, run, console, flags
        self.model = _model(setting, flags)
        self.meta = model_meta(self.model, setting.data.classes)  # type: ignore[arg-type]
        self.config_tree = setting.config.model_dump(mode="json")
        self.lines = JsonLines(run.path / "metrics.jsonl")
        self.trainer = self._trainer(stop)

    def _trainer(self, stop: Callable[[], None]) -> Trainer:
        setting, config, data = self.setting, self.setting.config, self.setting.data
        objective, parameters = bound(registry.objectives, config.objective, "objective")
        inner = registry.objectives.get(config.objective.name).facts["inner"]
        attack, attack_parameters = bound(registry.attacks, config.adversary, "adversary")
        optimizer, optimizer_parameters = bound(registry.optimizers, config.train.optimizer, "train.optimizer")
        schedule, schedule_parameters = bound(registry.schedules, config.train.schedule, "train.schedule")
        dtype = resolve(config.precision, setting.device, self.console.warn)
        search = make_search(config, setting.device, self.console.warn)
        step = MinMax(
            self.model,
            call_with(objective, parameters),
            inner,
            call_with(attack, attack_parameters),
            setting.ball,
            optimizer(self.model, **optimizer_parameters),
            dtype=dtype,
            attack_bn=config.train.attack_bn,
            fold=search.fold_bn or search.dtype is not torch.float32,
            twin_dtype=search.dtype,
            channels_last=config.train.channels_last,
            grad_clip=config.train.grad_clip,
            parallel=nn.DataParallel(self.model) if config.train.parallel == "dp" else None,
            scaler=torch.amp.GradScaler(setting.device.type) if dtype is torch.float16 else None,
            stop=stop,
        )
        batch = min(config.train.batch_size, max(1, len(data.train)))
        epoch = max(1, len(data.train) // batch)
        lengths = {unit: getattr(config.train, unit) for unit in ("steps", "minutes", "epochs")}
        budget = next(((unit, float(amount)) for unit, amount in lengths.items() if amount is not None), ("epochs", 10.0))
        val = data.val if len(data.val) else None
        plan = TrainPlan(
            seed=config.seed,
            batch_size=config.train.batch_size,
            factor=call_with(schedule, schedule_parameters),
            augment=data.augment if data.augment.crop or data.augment.flip else None,
            budget=budget,
            save_every=config.train.save_every or epoch,
            validate_every=max(1, round(float(config.train.validate_every) * epoch)),
            validation=None if val is None else eval_plan(setting, [config.train.val_attack] if inner else [], path="train.val_attack"),
            val_positions=torch.zeros(0, dtype=torch.int64) if val is None else choose(val, n=config.train.val_n, first=None, seed=config.seed),
            robust_best=inner is not None,
        )
        return Trainer(step, data.train, val, plan, setting.device, save=self._save, log=self._log, stop=stop, say=self.console.info)

    def go(self) -> Progress:
        """Start or resume, train, write the results."""
        self._resume()
        self.run.write_text("config.resolved.yaml", dump_config(self.setting.config.model_copy(update={"out": None})))
        self.run.write_json("env.json", environment())
        trainer = self.trainer
        if not trainer.progress.max_steps:
            trainer.fix_budget()
        self._say_plan()
        size = sum(t.numel() * t.element_size() for t in self.model.state_dict().values())
        preflight(self.run.path, int(2.2 * 2 * size))
        try:
            with self.console.progress(trainer.progress.max_steps, "training", done=trainer.progress.step) as bar:
                trainer._tick = lambda progress, rate, waiting: bar.advance(1, **self._fields(progress, rate, waiting))
                result = trainer.run()
        except Interrupted as error:
            self.run.status(state="preempted", code=error.exit_code, step=trainer.progress.step, last_checkpoint=self._last())
            where = f"--out {self.run.path}" if self.setting.config.out else f"name={self.setting.config.name}"
            raise Interrupted(error.what, signum=error.signum, where=str(self.run.path), hint=f"resume with the same command and --resume ({where})") from None
        except NumericsError:
            if trainer.offending:
                save_file(trainer.offending, self.run.path / "nan_batch.safetensors")
            raise
        self._finish(result)
        return result

    def _say_plan(self) -> None:
        step, progress = self.trainer.step, self.trainer.progress
        outer = str(step.dtype).removeprefix("torch.")
        config = self.setting.config
        inner = "none" if step.inner is None else f"{config.adversary.name} on {step.inner}, searched in {str(step.twin_dtype).removeprefix('torch.')}"
        size = self.trainer.batch_size
        text = f"training {config.model.name} on {self.setting.data.name}: {progress.max_steps} steps of {size}, {outer}, attack {inner}"
        self.console.info(text)
        self.run.log(text)

    def _fields(self, progress: Progress, rate: float, waiting: float) -> dict[str, Any]:
        loss = progress.loss_sums.get("loss", 0.0) / progress.loss_count if progress.loss_count else 0.0
        fields = {"loss": f"{loss:.3f}", "img/s": f"{rate:.0f}", "waiting": f"{waiting:.0%}"}
        if progress.last.get("clean_acc") is not None:
            fields["val"] = f"{progress.last['clean_acc']:.1%}" + (f"/{progress.last['robust_acc']:.1%}" if self.trainer.plan.robust_best else "")
        return fields

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _save(self, progress: Progress, groups: dict[str, dict[str, Tensor]], tags: Sequence[str]) -> None:
        self.lines.sync()
        progress.log_offset = self.lines.offset
        data = {"name": self.setting.data.name, "digest": self.setting.data.digest}
        meta = {**self.meta, "config": self.config_tree, "progress": asdict(progress), "data": data}
        path = save_checkpoint(self.run.checkpoints, progress.step, groups, meta, tags=tags, keep=self.setting.config.train.keep)
        self.run.status(state="running", step=progress.step, last_checkpoint=str(path.relative_to(self.run.path)))

    def _last(self) -> str:
        return str(resolve_checkpoint(self.run.checkpoints, "last").relative_to(self.run.path))

    def _resume(self) -> None:
        """Continue from the newest checkpoint that verifies; a run without one starts anew."""
        if not self.run.resumed:
            return
        for stale in sweep(self.run.checkpoints):
            self.console.info(f"removed {stale.name}, left by an interrupted save")
        snapshot = latest_good(self.run.checkpoints, self.console.warn)
        if snapshot is None:
            self.console.info("no checkpoint yet: starting from step 0")
            self.lines.truncate(0)
            return
        stored: Mapping[str, Any] = snapshot.meta
        if stored.get("data", {}).get("digest") != self.setting.data.digest and "data" not in self.flags.override_resume:
            raise UsageError("the data is not the data of this run (its digest differs)", hint="restore it, or add --override-resume data", code="E-RESUME")
        check_resume(stored["config"], self.config_tree, self.flags.override_resume, self.console.warn)
        compare_state(self.model.state_dict(), snapshot.groups["model"], where=str(snapshot.path))
        progress = Progress(**stored["progress"])
        if self._budget(stored["config"]) != self._budget(self.config_tree):
            progress.max_steps = 0
        self.trainer.restore(snapshot.groups, progress, where=str(snapshot.path))
        self.lines.truncate(progress.log_offset)
        self.console.info(f"resuming at step {progress.step} of {progress.max_steps} from {snapshot.path}")

    @staticmethod
    def _budget(tree: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(tree["train"].get(unit) for unit in ("steps", "minutes", "epochs"))

    # ---- results -----------------------------------------------------------------------------------------------

    def _log(self, row: dict[str, Any]) -> None:
        ball, attack = self.setting.ball, self.trainer.plan.validation
        calls = list(attack.attacks) if attack is not None else []
        hashes = {"data": self.setting.data.digest}
        name, params = (calls[0].name, calls[0].params) if calls else ("", {})
        record = TrainRow.of(row, norm=ball.norm, eps=ball.eps, attack=name, params=params, seed=self.setting.config.seed, hashes=hashes)
        self.lines.write(record.to_json())
        text = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items() if value is not None)
        self.run.log(text)

    def _finish(self, progress: Progress) -> None:
        """Tables, curves and the summary, from the records on disk."""
        from robustcli.reporting.plots import training_curves

        self.lines.close()
        rows = train_rows(self.run.path / "metrics.jsonl")
        write_csv(self.run.path / "results.csv", rows)
        if rows:
            training_curves(self.run.path / "plots" / "training.png", rows)
        self.run.write_text("summary.md", train_summary(self.config_tree, progress.best, progress.last, rows))
        self.console.table(train_table(rows, best_step=progress.best.get("step")))
