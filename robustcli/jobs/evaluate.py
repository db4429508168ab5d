"""`robustcli eval`: clean accuracy, robust accuracy and attack success, each with n and an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.cost import evaluation_plan
from robustcli.assembly.extra_attacks import plugin_calls, surrogate_calls
from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.ranges import Sweep, parse_sweep
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting, prepare_to_measure
from robustcli.config.load import Loaded
from robustcli.errors import UsageError
from robustcli.evaluation.crosscheck import cross_check
from robustcli.evaluation.library import torchattacks_module
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.shards import parse_part
from robustcli.jobs.evaluated import refuse_unreliable, report
from robustcli.jobs.evidence.by_itself import leave_report
from robustcli.jobs.measure import check_attacks, check_share
from robustcli.jobs.resuming import check_flags
from robustcli.jobs.sharded import beginner, joined, open_sharded, with_source
from robustcli.jobs.sweep import check_sweep, help_sweep, run_sweep
from robustcli.jobs.thresholds import check_metrics
from robustcli.jobs.union import measure_all, shard_folders
from robustcli.jobs.verb_flags import EvalFlags
from robustcli.models.blackbox import queries_of
from robustcli.records.alarm import Alarm
from robustcli.records.document import Document
from robustcli.runtime.signals import StopFlag
from robustcli.store.follower import Follower
from robustcli.terminal.console import Console

_LIBRARY = "torchattacks"


def evaluate(loaded: Loaded, console: Console, flags: EvalFlags) -> dict[str, Any] | None:
    """Evaluate as configured; returns the `eval` document, with `gate` where fail_under is set.

    None: of a process of a team that is not its first. It measures shards, and says and writes nothing else.
    """
    document = Document("eval")
    team, console = joined(loaded.config, console)
    check_flags(flags.resume, flags.overwrite)
    check_metrics(loaded.config.eval.fail_under)
    share = parse_part(flags.shard) if flags.shard else None
    sweep = parse_sweep(loaded.config.eval.sweep) if loaded.config.eval.sweep else None
    config = with_source("eval", loaded.config, console, resume=flags.resume, team=team)
    surrogates = flags.surrogates or config.eval.surrogate.models
    models = (*begins_with(config), *surrogates)
    if config.union:
        _check_union(flags, sweep)
    setting = prepare_to_measure(config, console, models, dry_run=flags.dry_run, union=True)
    if sweep is not None:
        check_sweep(sweep, setting)
    model = ModelSource.of(setting, flags).to_measure(console)
    _check_library(flags.cross_check)
    stop = StopFlag()
    extra = _extra(setting, console, flags, surrogates, stop)
    for part, calls in zip(setting.parts, extra, strict=True):
        check_attacks(part, calls, model)
    check_share(setting, share, needs_all=sweep is not None or flags.cross_check is not None)
    if flags.dry_run:
        return evaluation_plan(setting, model, config.attacks, console, processes=flags.nproc)
    references = (flags.plugin, *surrogates, flags.attack_plugin)
    with open_sharded("eval", config, console, flags, *references, team=team) as run, stop:
        accepted = beginner(run, config)
        result, rows = measure_all(
            setting, model, console, stop.check, run, share, accepted, extra=extra, team=team
        )
        if isinstance(run, Follower):
            if result.complete and sweep is not None:
                help_sweep(setting, model, stop.check, sweep, team)
            return None
        more: dict[str, Any] = {}
        if result.complete and flags.cross_check is not None:
            more["cross_check"], alarms = _cross_check(setting, model, console, stop.check)
            result = replace(result, alarms=[*result.alarms, *alarms])
        if result.complete and sweep is not None:
            more["sweep"], alarms = run_sweep(setting, model, console, stop.check, sweep, run, team)
            result = replace(result, alarms=[*result.alarms, *alarms])
        more |= queries_of(model, result.asked_elsewhere)
        folders = shard_folders(run.path, setting)
        answer = report(run, document, config, result, rows, console, more, shards=folders)
        if flags.report:
            leave_report(run, console)
    refuse_unreliable(result, run, flags.strict)
    return answer


def _check_union(flags: EvalFlags, sweep: Sweep | None) -> None:
    """Raises UsageError for what an evaluation in several balls does not do."""
    for name, asked in (("--sweep", sweep is not None), ("--cross-check", flags.cross_check is not None)):
        if asked:
            raise UsageError(
                f"{name} works in one ball, and the configuration has several", where="ball", hint="--norm l2"
            )


def _extra(
    setting: Setting, console: Console, flags: EvalFlags, surrogates: Sequence[str], stop: StopFlag
) -> list[list[AttackCall]]:
    """For each ball the attacks behind the configured ones."""
    return [
        surrogate_calls(part, console, surrogates, flags.allow_pickle, stop)
        + plugin_calls(flags.attack_plugin)
        for part in setting.parts
    ]


def _check_library(name: str | None) -> None:
    """Raises UsageError for an unknown library, ResourceError for one that is not installed."""
    if name is None:
        return
    if name != _LIBRARY:
        raise UsageError(f"--cross-check {name!r}", hint=f"known: {_LIBRARY}")
    torchattacks_module("--cross-check")


def _cross_check(
    setting: Setting, model: nn.Module, console: Console, stop: Callable[[], None]
) -> tuple[list[dict[str, Any]], list[Alarm]]:
    """(rows, alarms): the same attacks by torchattacks, under our judge; see `evaluation.crosscheck`."""
    config = setting.config
    split, positions = samples(setting)
    plan = eval_plan(setting, config.attacks, target=config.eval.target)
    rows, alarms = cross_check(model, plan, split, positions, setting.device, stop=stop, say=console.warn)
    for row in rows:
        console.info(_line(row))
    return rows, alarms


def _line(row: dict[str, Any]) -> str:
    """One attack and its counterpart in one line for the console."""
    if not row["peer"]:
        return f"cross-check {row['attack']} / no counterpart: {row['verdict']}: {row['note']}"
    counts = f"standing {row['standing']} and {row['peer_standing']} of {row['n']}, p = {row['p']:.2g}"
    return f"cross-check {row['attack']} / {row['peer']}: {row['verdict']}: {counts}"
