"""`robustcli attack`: the images that break a model, as 8-bit PNGs. Each is read back and scored again."""

from __future__ import annotations

from typing import Any

from robustcli.assembly.cost import evaluation_plan
from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import pinned
from robustcli.assembly.setting import Setting, prepare, prepare_to_measure
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.jobs.evaluated import report
from robustcli.jobs.image_files import ImageWriter, check_channels
from robustcli.jobs.measure import check_attacks, measure
from robustcli.jobs.patch_fit import check_fits_on, check_patch, fitted
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.sharded import joined, open_new
from robustcli.jobs.verb_flags import MeasureFlags
from robustcli.models.blackbox import queries_of
from robustcli.records.document import Document
from robustcli.runtime.signals import StopFlag
from robustcli.store.follower import Follower
from robustcli.terminal.console import Console


def attack(loaded: Loaded, console: Console, flags: MeasureFlags) -> dict[str, Any] | None:
    """Attack as configured; returns the `attack` document of the machine contract.

    None: of a process of a team that is not its first.
    """
    document = Document("attack")
    team, console = joined(loaded.config, console)
    config = pinned(loaded.config)
    check_patch(config, flags.nproc)
    setting = _prepared(config, console, dry_run=flags.dry_run)
    model = ModelSource.of(setting, flags).to_measure(console)
    check_attacks(setting, model=model, files=config.attack.patch is None)
    check_fits_on(model, config)
    if flags.dry_run:
        return evaluation_plan(setting, model, config.attacks, console, processes=flags.nproc)
    check_channels(setting.data.shape[0])
    with open_new("attack", config, flags, team=team) as run, StopFlag() as stop:
        write_inputs(run, config)
        if not isinstance(run, Follower):
            setting = fitted(setting, model, run, console, stop.check)
        writer = ImageWriter(setting, model, run, team)
        result, rows = measure(setting, model, console, stop.check, done=writer.add, audit=False, team=team)
        if isinstance(run, Follower):
            return None
        images = writer.finish(console)
        return report(
            run,
            document,
            config,
            result,
            rows,
            console,
            {**images, **queries_of(model, result.asked_elsewhere)},
        )


def _prepared(config: Config, console: Console, *, dry_run: bool) -> Setting:
    """The setting, with the images that a patch is fitted on beside those that are measured."""
    models, asked = begins_with(config), config.attack.patch
    if asked is None:
        return prepare_to_measure(config, console, models, dry_run=dry_run)
    parts = dict.fromkeys((config.eval.split, asked.split))
    return prepare(config, console, parts=(*parts,), models=models, measures=True, dry_run=dry_run)
