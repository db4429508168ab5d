"""`robustcli guard eval`: bare, oblivious and adaptive numbers of a guarded model, side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from robustcli.assembly.attacks import eval_plan, probe_size
from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import pinned
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting, prepare_to_measure
from robustcli.assembly.sources import new_run
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.errors import ConfigError, UsageError
from robustcli.evaluation.guarded.evaluation import GuardEvaluation, GuardResult
from robustcli.evaluation.plan import EvalPlan
from robustcli.jobs.evaluated import refuse_unreliable
from robustcli.jobs.guard.cost import guard_plan
from robustcli.jobs.guard.report import report
from robustcli.jobs.measure import check_attacks
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.thresholds import check_metrics
from robustcli.jobs.verb_flags import EvalFlags
from robustcli.models.guarded import GuardedModel
from robustcli.records.document import Document
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console

VERB = "guard eval"


def guard_eval(loaded: Loaded, console: Console, flags: EvalFlags) -> dict[str, Any]:
    """Evaluate a guarded model as configured; returns the `guard eval` document."""
    document = Document(VERB)
    config = pinned(loaded.config)
    check_metrics(config.eval.fail_under)
    _check_request(config)
    setting = prepare_to_measure(config, console, begins_with(config), dry_run=flags.dry_run)
    check_attacks(setting)
    plan = _plan(setting)
    guard = _guarded(ModelSource.of(setting, flags).to_measure(console))
    if flags.dry_run:
        return guard_plan(setting, guard, plan, console)
    with (
        new_run(VERB.replace(" ", "-"), config, flags.plugin, overwrite=flags.overwrite) as run,
        StopFlag() as stop,
    ):
        write_inputs(run, config)
        result = _measure(setting, guard, plan, console, stop)
        answer = report(run, document, setting, guard, plan, result, console)
    refuse_unreliable(result.verdict, run, flags.strict)
    return answer


def _check_request(config: Config) -> None:
    """Raises UsageError when a target is set, or a sweep, which this evaluation has not."""
    for key in ("target", "sweep"):
        if getattr(config.eval, key) is not None:
            raise UsageError(
                f"guard eval is measured without eval.{key}", where=f"eval.{key}", hint="set it to null"
            )


def _plan(setting: Setting) -> EvalPlan:
    """The configured attacks, on the bare network; in the ball alone."""
    config = setting.config
    plan = eval_plan(setting, config.attacks)
    if apart := [call.label for call in plan.attacks if not call.bounded]:
        raise UsageError(
            f"a guard is measured inside the ball, and {', '.join(apart)} leaves it",
            where="attacks",
            hint="choose another --attack",
        )
    n = len(samples(setting)[1])
    checks = probe_size(plan.attacks, n, config.eval.checks, setting.classes, setting.ball.norm)
    return replace(plan, checks=checks, escalate=config.eval.escalate)


def _guarded(model: nn.Module) -> GuardedModel:
    """The model behind its defences. Raises ConfigError where it has none, or they are not fitted."""
    if not isinstance(model, GuardedModel):
        raise ConfigError(
            "the model has no defences",
            where="--model",
            hint="--model guard:DIR, `defences:` in the configuration, or `robustcli eval` for a bare model",
        )
    if not model.fitted:
        raise ConfigError("a detector has no threshold", where="--model", hint="robustcli guard fit sets it")
    return model


def _measure(
    setting: Setting, guard: GuardedModel, plan: EvalPlan, console: Console, stop: StopFlag
) -> GuardResult:
    """The three parts and the sanity tests, with a bar over the bare and the adaptive part."""
    split, positions = samples(setting)
    attacks = ", ".join(call.label for call in plan.attacks)
    n = len(positions)
    console.info(f"{n} {setting.config.eval.split} images: bare and oblivious under {attacks}, then adaptive")
    with console.progress(2 * n, "guard") as bar:
        evaluation = GuardEvaluation(guard, plan, stop=stop.check, say=console.warn)
        return evaluation.run(
            split,
            positions,
            setting.device,
            on_part=lambda part: console.detail(f"part: {part}"),
            on_batch=lambda outcome: bar.advance(len(outcome.y)),
        )
