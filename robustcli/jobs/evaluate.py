"""`robustcli eval`: clean accuracy, robust accuracy and attack success, each with n and an interval."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robustcli.config.dump import dump_config
from robustcli.config.load import Loaded
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.robust import AttackCall, BatchOutcome, Evaluation, RobustEvaluation
from robustcli.jobs.compose import Setting, choose, eval_plan, fresh_model, is_reference, move, prepare, split_of
from robustcli.jobs.plan import evaluation_plan
from robustcli.models import check_classes, load_model
from robustcli.records import EvalRow, clopper_pearson
from robustcli.reporting.summary import eval_summary
from robustcli.reporting.tables import class_table, eval_table, write_csv
from robustcli.runtime.atomic import JsonLines
from robustcli.runtime.console import Console
from robustcli.runtime.run import Run
from robustcli.runtime.rundir import open_run
from robustcli.runtime.seed import code_hash, environment
from robustcli.runtime.signals import StopFlag

_METRICS = ("clean_acc", "robust_acc", "attack_success")


@dataclass(frozen=True)
class EvalFlags:
    """What only the command line says of an evaluation."""

    overwrite: bool = False
    dry_run: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


def evaluate(loaded: Loaded, console: Console, flags: EvalFlags) -> dict[str, Any]:
    """Evaluate as configured; returns the `eval` document of the machine contract, with `gate` when fail_under is set."""
    config = loaded.config
    began = time.perf_counter()
    check_metrics(config.eval.fail_under)
    setting = prepare(config, console)
    model = model_of(setting, console, flags)
    if flags.dry_run:
        return evaluation_plan(setting, model, config.attacks, console)
    with open_run("eval", config.name, out=config.out, overwrite=flags.overwrite) as run, StopFlag() as stop:
        run.write_text("config.resolved.yaml", dump_config(config.model_copy(update={"out": None})))
        run.write_json("env.json", environment())
        result, rows, calls = measure(setting, model, console, stop.check)
        write_rows(run, rows)
        console.table(eval_table(rows))
        console.table(class_table(rows[-1]))
        for alarm in result.alarms:
            console.warn(f"{alarm.level}: {alarm.name}: {alarm.evidence}; {alarm.remedy}")
        document = {"run": str(run.path), "seconds": round(time.perf_counter() - began, 3), **eval_document(result, rows)}
        gate = check_gate(document, config.eval.fail_under)
        if gate:
            document["gate"] = gate
        run.write_text("summary.md", eval_summary(config.model_dump(mode="json"), rows, [a.to_json() for a in result.alarms]))
        run.write_json("summary.json", {"schema_version": 1, "ok": True, "verb": "eval", **document})
        run.status(state="done", code=0)
    return document


def model_of(setting: Setting, console: Console, flags: Any) -> nn.Module:
    """The model to measure, on the device; its classes are compared with the data's."""
    spec, data = setting.config.model, setting.data
    if flags.plugin is None and not is_reference(spec.name) and spec.weights is None:
        console.warn(f"model {spec.name} has untrained weights; point --model to a run (run:runs/train/latest) or give model.weights")
        return move(fresh_model(setting), setting.device, False)
    model = load_model(
        spec.name,
        params=spec.params,
        weights=spec.weights,
        plugin=flags.plugin,
        num_classes=None if spec.name.startswith(("run:", "torchvision:")) else len(data.classes),
        channels=data.shape[0],
        size=data.shape[1],
        mean=data.mean,
        std=data.std,
        normalize=spec.normalize,
        allow_pickle=flags.allow_pickle,
        download=setting.config.data.download,
        seed=setting.config.seed,
    )
    with torch.no_grad():
        model.eval()
        classes = model(torch.zeros(1, *data.shape)).shape[1]
    check_classes(classes, data.classes, getattr(model, "classes", None))
    return move(model, setting.device, False)


def measure(
    setting: Setting, model: nn.Module, console: Console, stop: Any, done: Any = lambda outcome: None, positions: Any = None
) -> tuple[Evaluation, list[EvalRow], list[AttackCall]]:
    """Run the configured attacks over the chosen samples: the evaluation and its records (clean, each attack, worst case)."""
    config = setting.config
    split = split_of(setting.data, config.eval.split)
    if positions is None:
        positions = choose(split, n=config.eval.n, first=config.eval.first, seed=config.seed)
    plan = eval_plan(setting, config.attacks, target=config.eval.target)
    evaluation = RobustEvaluation(model, plan, stop=stop, say=console.warn)
    with console.progress(len(positions), f"{config.eval.split} images under {', '.join(call.label for call in plan.attacks) or 'no attack'}") as bar:
        seen = {"n": 0, "right": 0, "standing": 0}

        def tick(outcome: BatchOutcome) -> None:
            seen["n"] += len(outcome.y)
            seen["right"] += int(outcome.correct.sum())
            seen["standing"] += int(outcome.standing[-1].sum()) if outcome.standing else int(outcome.correct.sum())
            bar.advance(len(outcome.y), clean=f"{seen['right'] / seen['n']:.1%}", robust=f"{seen['standing'] / seen['n']:.1%}")
            done(outcome)

        result = evaluation.run(split, positions, setting.device, done=tick)
    return result, rows_of(setting, model, result, list(plan.attacks)), list(plan.attacks)


def rows_of(setting: Setting, model: nn.Module, result: Evaluation, calls: list[AttackCall]) -> list[EvalRow]:
    """One record for clean accuracy, one per attack (cumulative), one for the worst case."""
    config, names = setting.config, setting.data.classes
    hashes = {"model": state_digest(model), "data": setting.data.digest, "code": code_hash(), "ids": ids_digest(result)}
    common: dict[str, Any] = {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.name,
        "norm": setting.ball.norm,
        "eps": setting.ball.eps,
        "n": result.n,
        "clean_correct": int(result.correct.sum()),
        "seed": config.seed,
        "hashes": hashes,
    }

    def row(kind: Any, call: AttackCall | None, standing: torch.Tensor, seconds: float, passes: float) -> EvalRow:
        per_class = {name: [int((standing & (result.labels == k)).sum()), int((result.labels == k).sum())] for k, name in enumerate(names)}
        named: dict[str, Any] = {"attack": call.name, "label": call.label, "params": dict(call.params)} if call else {}
        return EvalRow(kind=kind, correct=int(standing.sum()), per_class=per_class, seconds=seconds, passes_per_sample=passes, **named, **common)

    rows = [row("clean", None, result.correct, 0.0, 1.0)]
    rows += [row("attack", c, result.stages[c.label], result.seconds[c.label], result.passes_per_sample[c.label]) for c in calls]
    passes = sum(result.passes_per_sample.values())
    return [*rows, row("worst", None, result.survivors, sum(result.seconds.values()), passes)]


def ids_digest(result: Evaluation) -> str:
    """Short hash of the sample ids: two rows are about the same images when it agrees."""
    return hashlib.sha256(result.ids.numpy().tobytes()).hexdigest()[:16]


def write_rows(run: Run, rows: list[EvalRow]) -> None:
    """metrics.jsonl and results.csv."""
    with JsonLines(run.path / "metrics.jsonl") as lines:
        for row in rows:
            lines.write(row.to_json())
    write_csv(run.path / "results.csv", [row.to_json() for row in rows])


def eval_document(result: Evaluation, rows: list[EvalRow]) -> dict[str, Any]:
    """The keys of the machine contract; accuracies are fractions, intervals Clopper-Pearson at 95 %."""
    right, standing = int(result.correct.sum()), int(result.survivors.sum())
    return {
        "n": result.n,
        "clean_acc": result.clean_acc,
        "robust_acc": result.robust_acc,
        "attack_success": result.attack_success,
        "intervals": {
            "clean_acc": list(clopper_pearson(right, result.n)),
            "robust_acc": list(clopper_pearson(standing, result.n)),
            "attack_success": list(clopper_pearson(right - standing, right)),
        },
        "attacks": [
            {"name": row.label, "robust_acc": row.correct / max(1, row.n), "passes_per_sample": row.passes_per_sample, "seconds": row.seconds}
            for row in rows
            if row.kind == "attack"
        ],
        "reliability": result.reliability,
        "alarms": [alarm.to_json() for alarm in result.alarms],
    }


def check_metrics(fail_under: Mapping[str, float]) -> None:
    """Raises UsageError for a metric that no evaluation has, before any work is done."""
    for name in fail_under:
        if name not in _METRICS:
            raise UsageError(f"--fail-under: unknown metric {name!r}", where="eval.fail_under", hint=f"known: {', '.join(_METRICS)}")


def check_gate(document: Mapping[str, Any], fail_under: Mapping[str, float]) -> list[dict[str, Any]]:
    """One verdict per threshold: plain >=."""
    least = {name: float(value) for name, value in fail_under.items()}
    return [{"metric": name, "min": low, "value": document[name], "passed": bool(document[name] >= low)} for name, low in least.items()]
