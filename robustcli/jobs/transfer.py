"""`robustcli transfer`: points made on each model, shown to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from robustcli import registry
from robustcli.assembly.attacks import eval_plan, numbered
from robustcli.assembly.cost import evaluation_plan
from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import followed, pinned
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting, prepare_to_measure
from robustcli.assembly.strongest import chains
from robustcli.config.bind import bind_spec
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.config.spec import ModelConfig, is_reference
from robustcli.errors import RobustCliError, UsageError
from robustcli.evaluation.joint import Join
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.transferability import Transfer, transfer_matrix
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.sharded import joined, open_new
from robustcli.jobs.transfer_report import Subjects, report
from robustcli.jobs.verb_flags import MeasureFlags, TransferFlags
from robustcli.models.blackbox import check_served
from robustcli.records.document import Document
from robustcli.runtime.signals import StopFlag
from robustcli.runtime.team import Team
from robustcli.store.follower import Follower
from robustcli.terminal.console import Console

_MOST = 64  # models in one matrix


def transfer(
    loaded: Loaded, references: Sequence[str], console: Console, flags: TransferFlags
) -> dict[str, Any] | None:
    """Measure every pair; returns the `transfer` document of the machine contract.

    None: of a process of a team that is not its first.
    """
    document = Document("transfer")
    team, console = joined(loaded.config, console)
    config, references = pinned(loaded.config), [followed(reference) for reference in references]
    _check_request(config, references, flags.together)
    configs = [_config_of(config, reference, k) for k, reference in enumerate(references)]
    named = [name for of_model in configs for name in begins_with(of_model)]
    setting = prepare_to_measure(config, console, named, dry_run=flags.dry_run)
    plan = eval_plan(setting, config.attacks)
    _check_attacks(plan)
    settings = [replace(setting, config=of_model) for of_model in configs]
    models = [_load(of_model, plan, console, flags) for of_model in settings]
    named_models = dict(zip(short_names(references), models, strict=True))
    subjects = Subjects(references, named_models, plan, chains(config.attacks, plan), flags.together)
    if flags.dry_run:
        return _dry_run(subjects, settings, console, flags.nproc)
    with open_new("transfer", config, flags, *references, team=team) as run, StopFlag() as stop:
        write_inputs(run, config)
        result = _measure(setting, subjects, console, stop, team)
        if isinstance(run, Follower):
            return None
        answer = document.finish(run.path, report(run, setting, subjects, result, console))
        run.write_json("summary.json", answer)
        run.status(state="done", code=0)
    return answer


def short_names(references: Sequence[str]) -> list[str]:
    """For each reference its shortest end, in path parts, that no other reference ends in.

    The scheme `run:` is dropped. Equal references are numbered.
    """
    paths = [reference.removeprefix("run:").rstrip("/").split("/") for reference in references]
    return numbered([_short_name(path, [other for other in paths if other != path]) for path in paths])


def _short_name(path: list[str], others: Sequence[list[str]]) -> str:
    """The shortest end of `path` that no path of `others` ends in."""
    for length in range(1, len(path)):
        if all(other[-length:] != path[-length:] for other in others):
            return "/".join(path[-length:])
    return "/".join(path)


def _check_request(config: Config, references: Sequence[str], together: Join | None) -> None:
    """Raises UsageError for too few or too many models, or when a target is set."""
    if together is not None and len(references) < 3:
        raise UsageError(
            "the others together need three models or more", where="--together", hint="name a third model"
        )
    if not 2 <= len(references) <= _MOST:
        raise UsageError(
            f"transfer needs 2 to {_MOST} models, got {len(references)}",
            where="--models",
            hint="--models run:A,run:B",
        )
    if config.eval.target is not None:
        raise UsageError("transfer is measured untargeted", where="eval.target", hint="set it to null")


def _check_attacks(plan: EvalPlan) -> None:
    """Raises UsageError for an attack that leaves the ball."""
    if apart := [call.label for call in plan.attacks if not call.bounded]:
        raise UsageError(
            f"transfer is measured inside the ball, and {', '.join(apart)} leaves it",
            where="attacks",
            hint="choose another --attack",
        )


def _config_of(config: Config, reference: str, k: int) -> Config:
    """The configuration with `reference`, the k-th of --models, as its model.

    The configured model keeps its parameters and weights when `reference` names it. Raises ConfigError for an
    unknown name.
    """
    spec = config.model
    if spec.name != reference:
        own = reference.startswith("run:")  # a run holds its normalisation
        spec = ModelConfig(name=reference, normalize=None if own else spec.normalize)
    if not is_reference(reference):
        bind_spec(registry.models, spec, f"--models.{k}")
    return config.model_copy(update={"model": spec})


def _load(setting: Setting, plan: EvalPlan, console: Console, flags: MeasureFlags) -> nn.Module:
    """The model of a setting on its device; it must serve the attacks. An error names the model."""
    try:
        model = ModelSource.of(setting, flags).to_measure(console)
        check_served(model, plan.attacks, setting.ball.norm)
        return model
    except RobustCliError as error:
        named = (f"--models {setting.config.model.name}", error.where)
        error.where = "; ".join(part for part in named if part)
        raise


def _dry_run(subjects: Subjects, settings: Sequence[Setting], console: Console, nproc: int) -> dict[str, Any]:
    """What each model's evaluation would cost."""
    plans = {
        name: evaluation_plan(setting, model, setting.config.attacks, console, processes=nproc)["plan"]
        for (name, model), setting in zip(subjects.models.items(), settings, strict=True)
    }
    return {"plan": plans, "run": None, "seconds": 0.0}


def _measure(setting: Setting, subjects: Subjects, console: Console, stop: StopFlag, team: Team) -> Transfer:
    split, positions = samples(setting)
    title = f"{setting.config.eval.split} images, {len(subjects.models)} models under {subjects.attacks}"
    with console.progress(len(positions), title) as bar:
        return transfer_matrix(
            subjects.models,
            subjects.plan,
            split,
            positions,
            setting.device,
            stop=stop.check,
            say=console.warn,
            done=bar.advance,
            team=team,
            chains=subjects.chains,
            together=subjects.together,
        )
