"""`robustcli train`: a configuration in, a run directory with the best checkpoint out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcli import registry
from robustcli.assembly.cost import training_plan
from robustcli.assembly.engine import make_engine
from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import pinned
from robustcli.assembly.reopen import found_by_name, note_run, opening
from robustcli.assembly.setting import Setting, prepare
from robustcli.assembly.sources import sources_of
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.config.spec import ModelConfig
from robustcli.config.validate import searching
from robustcli.data.mixture import JoinedSplit
from robustcli.errors import Interrupted
from robustcli.jobs.evidence.by_itself import leave_report
from robustcli.jobs.evidence.leakage import leakage_after
from robustcli.jobs.resuming import check_flags, say_if_anew
from robustcli.jobs.trainrun import TrainRun
from robustcli.jobs.verb_flags import TrainFlags
from robustcli.proportions import Rate, at_chance
from robustcli.records.document import Document
from robustcli.runtime.device import pick_device
from robustcli.runtime.distributed import Ranks, join, local_device, solo
from robustcli.runtime.signals import StopFlag
from robustcli.store.follower import Follower
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console
from robustcli.training.trainplan import Progress

_NEEDED = ("train", "val")


def train(
    loaded: Loaded, console: Console, flags: TrainFlags, extra: JoinedSplit | None = None
) -> dict[str, Any]:
    """Train as configured; returns the `train` document of the machine contract.

    extra: images in place of those of `data.extra`; they are mixed in and written nowhere.
    """
    document = Document("train")
    check_flags(flags.resume, flags.overwrite)
    if flags.dry_run:
        return _dry_run(loaded.config, console, flags)
    config = loaded.config.model_copy(update={"device": local_device(loaded.config.device)})
    with join(pick_device(config.device)) as ranks:
        console = console if ranks.main else Console(quiet=True)
        with _open(config, flags, ranks, console) as run, StopFlag() as stop:
            setting = _prepared(_with_one_model(config, run, ranks, console), run, console)
            training = TrainRun(setting, run, console, flags, stop.check, ranks, extra)
            progress = training.train()
            leakage = leakage_after(training, console, stop.check)
            answer = document.finish(run.path, {**_results(training, progress, leakage), **leakage})
            if unsound := _unsound(training, progress):
                console.warn(unsound)
            run.write_json("summary.json", {**answer, "seed": config.seed})
            run.status(state="done", code=0, step=progress.step)
            if flags.report:
                leave_report(run, console)
            ranks.barrier()
    return answer


def next_steps(
    answer: dict[str, Any], console: Console, norms: Sequence[str], plugin: str | None = None
) -> None:
    """Show what to do with the run of a `train` document: measure it, attack it, look at its curves.

    norms: of its balls; verbs that take one get the first.
    plugin: FILE.py:factory where the network is the user's: no later verb runs its code unasked.
    """
    one = f" --norm {norms[0]}" if len(norms) > 1 else ""
    run = Path(answer["run"])
    model = shlex.join(["--model", f"run:{run}", *(["--plugin", plugin] if plugin else [])])
    lines = [
        "next steps:",
        f"  robustcli eval {model}   (the verdict, on the test split)",
        f"  robustcli eval {model} --attack {_strongest(norms)}   (the one to publish)",
        f"  robustcli attack {model}{one} --n 32   (images that break it, as PNG files)",
        f"  the course of the training: {run / 'plots' / 'training.png'} and {run / 'summary.md'}",
    ]
    if "verified_acc" in answer["best"]:
        lines.insert(2, f"  robustcli certify {model}   (what is proven, beside what attacks find)")
    for line in lines:
        console.info(line)


def _strongest(norms: Sequence[str]) -> str:
    """AutoAttack, or the longest search that knows all these norms."""
    usual = "autoattack"
    if set(norms) <= set(registry.ensembles.get(usual).facts.norms):
        return usual
    return next(
        name for name in searching(norms[0]) if set(norms) <= set(registry.attacks.get(name).facts.norms)
    )


def _dry_run(config: Config, console: Console, flags: TrainFlags) -> dict[str, Any]:
    """The plan of the training: its cost. Raises the errors of one that cannot be put together."""
    config = pinned(config)
    setting = prepare(config, console, parts=_NEEDED, models=begins_with(config), dry_run=True, union=True)
    model = ModelSource.of(setting, flags).to_train(console.warn, console.info)
    make_engine(setting, model, solo(), lambda: None, console.warn)
    return training_plan(setting, model, console)


def _open(config: Config, flags: TrainFlags, ranks: Ranks, console: Console) -> Run | Follower:
    """Rank 0 opens the run directory and holds its lock; the others get its path and write nothing."""
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
        sources=sources_of(config, flags.plugin),
        begin=False,
    )
    if run.begun:
        note_run(run.path)
    if flags.resume:
        say_if_anew(run, console)
    if found_by_name():
        run.keep()
    ranks.broadcast([str(run.path), run.resumed])
    return run


def _with_one_model(config: Config, run: Run | Follower, ranks: Ranks, console: Console) -> Config:
    """The configuration with ``latest`` in its model replaced by the run that rank 0 finds, on all ranks."""
    found = None
    if ranks.main:
        resumed = run.path if run.resumed else None
        found = pinned(config, resumed, console.info).model.model_dump(mode="json")
    return config.model_copy(update={"model": ModelConfig.model_validate(ranks.broadcast(found))})


def _prepared(config: Config, run: Run | Follower, console: Console) -> Setting:
    """The setting. A run that is interrupted here is marked as resumable."""
    try:
        resumed = (str(run.path),) if run.resumed else ()
        return prepare(config, console, parts=_NEEDED, models=(*resumed, *begins_with(config)), union=True)
    except Interrupted:  # there is nothing to save yet, and --resume begins anew
        run.status(resumable=True)
        raise


def at_chance_of(best: Mapping[str, Any]) -> str:
    """One sentence where the best model is not surely better than one answer for all images; else ""."""
    n, chance = best.get("n"), best.get("chance")
    if not n or chance is None:
        return ""
    rates = [Rate(round(best[key] * n), n) for key in ("clean_acc", "robust_acc") if best[key] is not None]
    return at_chance(rates[0], rates[1] if len(rates) > 1 else None, chance)


def _unsound(training: TrainRun, progress: Progress) -> str:
    """One sentence where gradients are masked and no model may be called the best; else ""."""
    if progress.best or not training.trainer.guards.masking:
        return ""
    return (
        "no model is known to be sound: a deeper look has found masked gradients, and none has passed since; "
        "the numbers and the checkpoint are those of the last model"
    )


def _results(training: TrainRun, progress: Progress, leakage: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the `train` document. leakage: what was found in the extra data, see `leakage_after`."""
    leaks = [leakage["leakage"]["alarm"]] if leakage.get("leakage", {}).get("alarm") else []
    best = progress.best or progress.last
    notes = [f"best: {text}" for text in (_unsound(training, progress), at_chance_of(best)) if text]
    accuracies = ["epoch", "clean_acc", "robust_acc"]
    if training.trainer.plan.verified:
        accuracies.append("verified_acc")
    return {
        "best": {key: best.get(key) for key in accuracies},
        "last": {key: progress.last.get(key) for key in accuracies},
        "checkpoint": str(resolve_checkpoint(training.run.checkpoints, "best")),
        "steps": progress.step,
        "ended": progress.ended or "budget",
        "robust_overfitting": round(training.trainer.guards.gap / 100, 6),
        "alarms": [*progress.alarms, *leaks],
        **({"notes": notes} if notes else {}),
    }
