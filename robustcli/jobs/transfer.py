"""`robustcli transfer`: a matrix of sources and targets, among the samples that all models classify correctly."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from robustcli import registry
from robustcli.assembly.compose import Setting, eval_plan, numbered, prepare, samples
from robustcli.assembly.cost import evaluation_plan
from robustcli.assembly.origin import followed, pinned
from robustcli.assembly.rows import ids_digest
from robustcli.assembly.subjects import model_of
from robustcli.config.bind import bind_spec
from robustcli.config.load import Loaded
from robustcli.config.spec import ModelConfig, is_reference
from robustcli.errors import RobustCliError, UsageError, printable
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.transferability import Transfer, transfer_alarms, transfer_matrix
from robustcli.jobs.evaluate import EvalFlags, begin
from robustcli.proportions import Rate
from robustcli.records.alarm import Alarm, reliability
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.heatmap import heatmap
from robustcli.reporting.summary import sources
from robustcli.reporting.tables import Table, write_csv
from robustcli.runtime.seed import code_hash
from robustcli.runtime.signals import StopFlag
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console

_MOST = 64  # models in one matrix


def transfer(loaded: Loaded, references: Sequence[str], console: Console, flags: EvalFlags) -> dict[str, Any]:
    """Measure every pair; returns the `transfer` document of the machine contract."""
    config, references = pinned(loaded.config), [followed(reference) for reference in references]
    began = time.perf_counter()
    if not 2 <= len(references) <= _MOST:
        raise UsageError(
            f"transfer needs 2 to {_MOST} models, got {len(references)}",
            where="--models",
            hint="--models run:A,run:B",
        )
    if config.eval.target is not None:
        raise UsageError("transfer is measured untargeted", where="eval.target", hint="set it to null")
    settings = [_setting_of(config, reference, k) for k, reference in enumerate(references)]
    setting = prepare(config, console)
    plan = eval_plan(setting, config.attacks)
    if apart := [call.label for call in plan.attacks if not call.bounded]:
        raise UsageError(
            f"transfer is measured inside the ball, and {', '.join(apart)} leaves it",
            where="attacks",
            hint="choose another --attack",
        )
    models = dict(zip(short_names(references), _loaded(setting, settings, console, flags), strict=True))
    if flags.dry_run:
        plans = {
            name: evaluation_plan(replace(setting, config=of), model, config.attacks, console)
            for (name, model), of in zip(models.items(), settings, strict=True)
        }
        return {"plan": {name: each["plan"] for name, each in plans.items()}, "run": None, "seconds": 0.0}
    with (
        open_run("transfer", config.name, out=config.out, overwrite=flags.overwrite) as run,
        StopFlag() as stop,
    ):
        begin(run, config)
        split, positions = samples(setting)
        with console.progress(
            len(positions), f"{config.eval.split} images, {len(models)} models under {_attacks(plan)}"
        ) as bar:
            result = transfer_matrix(
                models,
                plan,
                split,
                positions,
                setting.device,
                stop=stop.check,
                say=console.warn,
                done=bar.advance,
            )
        document = _report(run, setting, models, references, plan, result, console)
        document = {"run": str(run.path), "seconds": round(time.perf_counter() - began, 3), **document}
        run.write_json("summary.json", {"schema_version": 1, "ok": True, "verb": "transfer", **document})
        run.status(state="done", code=0)
    return document


def _setting_of(config: Any, reference: str, k: int) -> Any:
    """The configuration with this model; the configured one keeps its parameters and weights. Raises ConfigError for an unknown name."""
    spec = (
        config.model
        if config.model.name == reference
        else ModelConfig(
            name=reference, normalize=None if reference.startswith("run:") else config.model.normalize
        )
    )
    if not is_reference(reference):
        bind_spec(registry.models.discover(), spec, f"--models.{k}")
    return config.model_copy(update={"model": spec})


def _loaded(setting: Setting, settings: Sequence[Any], console: Console, flags: EvalFlags) -> list[nn.Module]:
    """The models on the device; a failure names its model."""
    found = []
    for config in settings:
        try:
            found.append(model_of(replace(setting, config=config), console, flags))
        except RobustCliError as error:
            error.where = "; ".join(part for part in (f"--models {config.model.name}", error.where) if part)
            raise
    return found


def short_names(references: Sequence[str]) -> list[str]:
    """Each reference without its scheme and with as few of its last path parts as tell it apart from the others; twins are numbered."""
    parts = [reference.removeprefix("run:").rstrip("/").split("/") for reference in references]
    names = []
    for k, own in enumerate(parts):
        others = [other for j, other in enumerate(parts) if j != k and other != own]
        length = next(
            (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)), len(own)
        )
        names.append("/".join(own[-length:]))
    return numbered(names)


def _attacks(plan: EvalPlan) -> str:
    return ", ".join(call.label for call in plan.attacks)


def _report(
    run: Run,
    setting: Setting,
    models: Mapping[str, nn.Module],
    references: Sequence[str],
    plan: EvalPlan,
    result: Transfer,
    console: Console,
) -> dict[str, Any]:
    """Records, table, picture, alarms and summary; what the document adds to run and seconds."""
    ball, joint = setting.ball, result.jointly_correct
    rates = [[Rate(int(k), joint) if joint else None for k in row] for row in result.broken]
    rows = _rows(setting, models, references, plan, result)
    with JsonLines(run.path / "transfer.jsonl") as lines:
        for row in rows:
            lines.write(row)
    write_csv(run.path / "results.csv", rows)
    title = f"{setting.data.name} {setting.config.eval.split}: {_attacks(plan)}, {ball.norm} {format_eps(ball.eps, ball.norm)}"
    cells: list[list[Cell]] = [[name, *row] for name, row in zip(result.names, rates, strict=True)]
    note = f"Share broken of the {joint} samples (of {result.n}) that all models classify correctly. The diagonal is white-box. Brackets: 95 % Wilson interval."
    table = Table(
        f"transfer: {title}", ["made on", *(f"shown to {name}" for name in result.names)], cells, note
    )
    console.table(table)
    picture = run.path / "plots" / "transfer.png"
    heatmap(picture, result.names, rates, title=f"{title}; {joint} jointly correct samples")
    alarms = transfer_alarms(result)
    for alarm in alarms:
        console.warn(f"{alarm.level}: {alarm.name}: {alarm.evidence}; {alarm.remedy}")
    if not joint:
        console.warn(
            f"no sample of {result.n} is classified correctly by all models: there is nothing to measure"
        )
    run.write_text("summary.md", _summary(run, setting, references, table, alarms))
    console.info(f"picture: {picture}")
    return {
        "models": list(result.names),
        "references": list(references),
        "n": result.n,
        "clean_acc": {
            name: int(k) / max(1, result.n) for name, k in zip(result.names, result.correct, strict=True)
        },
        "jointly_correct": joint,
        "matrix": result.matrix,
        "intervals": [[list(rate.exact) if rate else None for rate in row] for row in rates],
        "attacks": [call.label for call in plan.attacks],
        "ball": {"norm": ball.norm, "eps": ball.eps},
        "reliability": reliability(alarms),
        "alarms": [alarm.to_json() for alarm in alarms],
    }


def _rows(
    setting: Setting,
    models: Mapping[str, nn.Module],
    references: Sequence[str],
    plan: EvalPlan,
    result: Transfer,
) -> list[dict[str, Any]]:
    """One record per pair; k of n jointly correct samples, of `samples` measured."""
    digests = [state_digest(model) for model in models.values()]
    common: dict[str, Any] = {
        "schema_version": 1,
        "kind": "transfer",
        "data": setting.data.name,
        "split": setting.config.eval.split,
    }
    common |= {
        "attack": _attacks(plan),
        "params": [{"name": call.name, **call.params} for call in plan.attacks],
    }
    common |= {
        "norm": setting.ball.norm,
        "eps": setting.ball.eps,
        "seed": setting.config.seed,
        "samples": result.n,
        "n": result.jointly_correct,
    }
    hashes = {"data": setting.data.digest, "code": code_hash(), "ids": ids_digest(result.ids)}
    rows = []
    for s, source in enumerate(result.names):
        for t, target in enumerate(result.names):
            k = int(result.broken[s, t])
            rate = Rate(k, result.jointly_correct) if result.jointly_correct else None
            row = {
                **common,
                "source": source,
                "target": target,
                "source_reference": references[s],
                "target_reference": references[t],
            }
            row |= {
                "k": k,
                "rate": rate.value if rate else None,
                "intervals": {"rate": list(rate.exact if rate else (0.0, 1.0))},
            }
            row |= {"gained": int(result.gained[s, t]), "lost": int(result.lost[s, t])}
            rows.append({**row, "hashes": {**hashes, "source": digests[s], "target": digests[t]}})
    return rows


def _summary(
    run: Run, setting: Setting, references: Sequence[str], table: Table, alarms: Sequence[Alarm]
) -> str:
    """summary.md: the command, the matrix, the alarms, whom to cite."""
    command = printable(
        f"robustcli transfer --models {','.join(references)} {run.path / 'config.resolved.yaml'}"
    ).replace("`", " ")
    lines = [f"# Transfer: {setting.config.name}", "", f"The same again: `{command}`.", "", table.markdown()]
    lines += [
        f"- **{alarm.level}** `{alarm.name}`: {printable(alarm.evidence)}; {printable(alarm.remedy)}"
        for alarm in alarms
    ]
    lines += [] if alarms else ["No alarm was raised about this matrix."]
    cited = sources(setting.config.model_dump(mode="json"), ("attacks",))
    lines += ["", "## Please cite", "", *(f"- `{name}`: {text}" for name, text in cited.items())]
    return (
        "\n".join(
            [
                *lines,
                "- transferability: Papernot et al., 2016, arXiv:1605.07277.",
                "- intervals: Wilson, JASA 22, 1927.",
            ]
        )
        + "\n"
    )
