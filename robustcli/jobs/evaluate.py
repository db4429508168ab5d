"""`robustcli eval`: clean accuracy, robust accuracy and attack success, each with n and an interval."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustcli.assembly.compose import Setting, eval_plan, prepare, probe_size, samples
from robustcli.assembly.cost import evaluation_plan
from robustcli.assembly.origin import pinned
from robustcli.assembly.ranges import parse_sweep
from robustcli.assembly.rows import eval_document, rows_of, write_rows
from robustcli.assembly.subjects import model_of, plugin_calls, surrogate_calls
from robustcli.config.dump import dump_config
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.errors import UnreliableError, UsageError
from robustcli.evaluation.alarms import Alarm
from robustcli.evaluation.crosscheck import cross_check
from robustcli.evaluation.library import torchattacks_module
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.evaluation.shards import ShardStore, parse_part, part
from robustcli.jobs.sharded import header_of, merged
from robustcli.jobs.sweep import check_sweep, run_sweep
from robustcli.records.rows import EvalRow
from robustcli.reporting.summary import eval_summary
from robustcli.reporting.tables import class_table, eval_table
from robustcli.runtime.seed import environment
from robustcli.runtime.signals import StopFlag
from robustcli.store.run import Run
from robustcli.store.rundir import newest_run, open_run
from robustcli.terminal.console import Console

_METRICS = ("clean_acc", "robust_acc", "attack_success")


@dataclass(frozen=True)
class EvalFlags:
    """What only the command line says of an evaluation."""

    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    strict: bool = False
    plugin: str | None = None
    allow_pickle: bool = False
    shard: str | None = None
    surrogate: str | None = None
    cross_check: str | None = None
    attack_plugin: str | None = None


def evaluate(loaded: Loaded, console: Console, flags: EvalFlags) -> dict[str, Any]:
    """Evaluate as configured; returns the `eval` document of the machine contract, with `gate` when fail_under is set."""
    config = loaded.config
    began = time.perf_counter()
    check_metrics(config.eval.fail_under)
    shard = parse_part(flags.shard) if flags.shard else None
    sweep = parse_sweep(config.eval.sweep) if config.eval.sweep else None
    config = pinned(
        config, newest_run("eval", config.name, out=config.out) if flags.resume else None, console.info
    )
    setting = prepare(config, console)
    if sweep is not None:
        check_sweep(sweep, setting)
    model = model_of(setting, console, flags)
    if flags.cross_check is not None:
        if flags.cross_check != "torchattacks":
            raise UsageError(f"--cross-check {flags.cross_check!r}", hint="known: torchattacks")
        torchattacks_module("--cross-check")
    stop = StopFlag()
    extra = surrogate_calls(setting, console, flags, stop) + plugin_calls(flags.attack_plugin)
    check_request(setting, extra, shard, sweep is not None or flags.cross_check is not None)
    if flags.dry_run:
        return evaluation_plan(setting, model, config.attacks, console)
    with (
        open_run("eval", config.name, out=config.out, overwrite=flags.overwrite, resume=flags.resume) as run,
        stop,
    ):
        accepted = functools.partial(begin, run, config)  # a refused --resume must leave the run as it was
        result, rows = measure(
            setting,
            model,
            console,
            stop.check,
            extra=extra,
            store=run.path / "shards",
            shard=shard,
            accepted=accepted,
        )
        more: dict[str, Any] = {}
        if result.complete:
            if flags.cross_check is not None:
                more["cross_check"], result = crossed(setting, model, console, stop.check, result)
            if sweep is not None:
                more["sweep"], alarms = run_sweep(setting, model, console, stop.check, sweep, run)
                result = replace(result, alarms=[*result.alarms, *alarms])
        document = report(run, "eval", config, result, rows, console, began, more)
    refuse_unreliable(result, run, flags.strict)
    return document


def refuse_unreliable(result: Evaluation, run: Run, strict: bool) -> None:
    """--strict: raises UnreliableError (exit 10) for a verdict with alarms; the run keeps its numbers."""
    if strict and result.reliability != "ok":
        raise UnreliableError(
            f"the evaluation is {result.reliability}: {', '.join(_names(result))}", where=str(run.path)
        )


def _names(result: Evaluation) -> list[str]:
    return sorted({alarm.name for alarm in result.alarms})


def check_request(
    setting: Setting, extra: list[AttackCall], shard: tuple[int, int] | None, whole: bool
) -> None:
    """Raises UsageError for what would be found out only after the run directory was made."""
    config, classes = setting.config, len(setting.data.classes)
    labels = [call.label for call in [*eval_plan(setting, config.attacks).attacks, *extra]]
    if len(set(labels)) < len(labels):
        raise UsageError(
            f"two attacks have one name: {', '.join(labels)}", hint="rename the plugin's function"
        )
    if isinstance(config.eval.target, int) and config.eval.target >= classes:
        raise UsageError(
            f"target {config.eval.target} is no class of {setting.data.name}",
            where="eval.target",
            hint=f"0 to {classes - 1}",
        )
    if shard is None:
        return
    if whole and shard[1] > 1:
        raise UsageError(
            "--sweep and --cross-check need the whole evaluation", hint="run them without --shard"
        )
    count = -(-len(samples(setting)[1]) // config.eval.shard_size)
    if not part(count, *shard):
        raise UsageError(
            f"--shard {shard[0]}/{shard[1]}: there are only {count} shards",
            hint="lower eval.shard_size, or use fewer parts",
        )


def begin(run: Run, config: Config) -> None:
    """What every evaluating run writes first."""
    run.write_text("config.resolved.yaml", dump_config(config.model_copy(update={"out": None})))
    run.write_json("env.json", environment())


def report(
    run: Run,
    verb: str,
    config: Any,
    result: Evaluation,
    rows: list[EvalRow],
    console: Console,
    began: float,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Records, tables, alarms, summary and status of a finished evaluation; returns its document."""
    write_rows(run, rows)
    title = (
        ""
        if result.complete
        else f"partial {result.shards[0]}/{result.shards[1]} shards: {result.n} of {result.total} samples; no number here is final"
    )
    table = eval_table(rows)
    alarms = ", ".join(_names(result)) or "no alarm"
    audit = "" if result.audit is None else f" Rapid, {result.audit.words()}."
    console.table(
        replace(table, note=f"{title or table.note}{audit} Reliability: {result.reliability} ({alarms}).")
    )
    console.table(class_table(rows[-1]))
    for alarm in result.alarms:
        console.warn(f"{alarm.level}: {alarm.name}: {alarm.evidence}; {alarm.remedy}")
    document = {
        "run": str(run.path),
        "seconds": round(time.perf_counter() - began, 3),
        **eval_document(result, rows),
        **(more or {}),
    }
    gate = check_gate(document, config.eval.fail_under) if result.complete else []
    if gate:
        document["gate"] = gate
    if not result.complete:
        document["partial"] = dict(zip(("shards", "of"), result.shards, strict=True))
        console.warn(title)
    head = f"**{title}.**\n\n" if title else ""
    run.write_text(
        "summary.md",
        head
        + eval_summary(config.model_dump(mode="json"), rows, [alarm.to_json() for alarm in result.alarms]),
    )
    run.write_json("summary.json", {"schema_version": 1, "ok": True, "verb": verb, **document})
    run.status(state="done", code=0)
    return document


def merge(
    sources: str,
    out: str | None,
    name: str,
    console: Console,
    overwrite: bool,
    strict: bool,
    fail_under: Mapping[str, float],
) -> dict[str, Any]:
    """`eval --merge A,B`: one verdict from the shards of several runs of the same evaluation; the model is not needed."""
    began = time.perf_counter()
    check_metrics(fail_under)
    result, rows, config = merged(
        [Path(text.strip()) for text in sources.split(",") if text.strip()], console
    )
    config = config.model_copy(
        update={"eval": config.eval.model_copy(update={"fail_under": dict(fail_under)})}
    )  # a gate of the whole, not of a part
    with open_run("eval", name, out=out, overwrite=overwrite) as run:
        begin(run, config)
        document = report(run, "eval", config, result, rows, console, began)
    refuse_unreliable(result, run, strict)
    return document


def measure(
    setting: Setting,
    model: nn.Module,
    console: Console,
    stop: Callable[[], None],
    *,
    done: Callable[[BatchOutcome], None] = lambda outcome: None,
    extra: list[AttackCall] | None = None,
    store: Path | None = None,
    shard: tuple[int, int] | None = None,
    accepted: Callable[[], None] = lambda: None,
    audit: bool = True,
) -> tuple[Evaluation, list[EvalRow]]:
    """Run the configured attacks over the chosen samples: the evaluation and its records (clean, each attack, worst case).

    store: directory of proven shards, which are not measured again; `accepted` is called when they belong to this evaluation.
    shard: (i, n): only this part of them. audit: whether a short list is audited, where it says so.
    """
    config = setting.config
    split, positions = samples(setting)
    plan = eval_plan(setting, config.attacks, target=config.eval.target)
    attacks = [*plan.attacks, *(extra or [])]
    size = plan.batch_size or (
        config.eval.shard_size if config.eval.shard_size < 256 else None
    )  # whole shards: what is done is saved
    plan = replace(
        plan,
        attacks=attacks,
        batch_size=size,
        checks=probe_size(
            attacks, len(positions), config.eval.checks, len(setting.data.classes), plan.ball.norm
        ),
        escalate=config.eval.escalate,
    )
    if plan.audit is not None and not audit:
        plan = replace(plan, audit=replace(plan.audit, samples=0))
    count = -(-len(positions) // config.eval.shard_size)
    evaluation = RobustEvaluation(model, plan, stop=stop, say=console.warn)

    def open_store(final: EvalPlan, alarms: list[Alarm], ids: Tensor, name: str) -> ShardStore:
        assert store is not None
        found = ShardStore(store / name, header_of(setting, model, final, ids, alarms), console.warn)
        accepted()
        return found

    with console.progress(
        len(positions),
        f"{config.eval.split} images under {', '.join(call.label for call in attacks) or 'no attack'}",
    ) as bar:
        seen = {"n": 0, "right": 0, "standing": 0}

        def tick(n: int, right: Tensor, standing: Tensor) -> None:
            if not n:
                return
            seen["n"], seen["right"], seen["standing"] = (
                seen["n"] + n,
                seen["right"] + int(right.sum()),
                seen["standing"] + int(standing.sum()),
            )
            bar.advance(
                n,
                clean=f"{seen['right'] / max(1, seen['n']):.1%}",
                robust=f"{seen['standing'] / max(1, seen['n']):.1%}",
            )

        def batch(outcome: BatchOutcome) -> None:
            tick(len(outcome.y), outcome.correct, outcome.survivors)
            done(outcome)

        result = evaluation.run(
            split,
            positions,
            setting.device,
            on_batch=batch,
            on_proven=tick,
            open_store=open_store if store is not None else None,
            shards=part(count, *shard) if shard else None,
        )
    return result, rows_of(setting, model, result)


def crossed(
    setting: Setting, model: nn.Module, console: Console, stop: Callable[[], None], result: Evaluation
) -> tuple[list[dict[str, Any]], Evaluation]:
    """`--cross-check torchattacks`: the same attacks by another library, under our judge; disagreement is an alarm."""
    config = setting.config
    split, positions = samples(setting)
    plan = eval_plan(setting, config.attacks, target=config.eval.target)
    rows, alarms = cross_check(model, plan, split, positions, setting.device, stop=stop, say=console.warn)
    for row in rows:
        found = (
            f"standing {row['standing']} and {row['peer_standing']} of {row['n']}, p = {row['p']:.2g}"
            if row["peer"]
            else row["note"]
        )
        console.info(
            f"cross-check {row['attack']} / {row['peer'] or 'no counterpart'}: {row['verdict']}: {found}"
        )
    return rows, replace(result, alarms=[*result.alarms, *alarms])


def check_metrics(fail_under: Mapping[str, float]) -> None:
    """Raises UsageError for a metric that no evaluation has, before any work is done."""
    for name in fail_under:
        if name not in _METRICS:
            raise UsageError(
                f"--fail-under: unknown metric {name!r}",
                where="eval.fail_under",
                hint=f"known: {', '.join(_METRICS)}",
            )


def check_gate(document: Mapping[str, Any], fail_under: Mapping[str, float]) -> list[dict[str, Any]]:
    """One verdict per threshold: plain >=."""
    least = {name: float(value) for name, value in fail_under.items()}
    return [
        {"metric": name, "min": low, "value": document[name], "passed": bool(document[name] >= low)}
        for name, low in least.items()
    ]
