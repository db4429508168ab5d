"""`robustcli eval --merge A,B`: one verdict from the shards of several runs of the same evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcli.assembly.rows import rows_from, short_ids_digest
from robustcli.config.load import load_config
from robustcli.config.schema import Config
from robustcli.config.threats import threat_name, union_norm
from robustcli.errors import DataError, UsageError
from robustcli.evaluation.answers import Answers
from robustcli.evaluation.audit import joined
from robustcli.evaluation.collect import concluded
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.shardfile import ShardResult
from robustcli.evaluation.shards import audits
from robustcli.evaluation.shards import merge as merge_shards
from robustcli.evaluation.stored import check_mergeable
from robustcli.evaluation.union import united
from robustcli.jobs.evaluated import refuse_unreliable, report
from robustcli.jobs.evidence.by_itself import leave_report
from robustcli.jobs.rerun import CONFIG, write_inputs
from robustcli.jobs.thresholds import check_metrics
from robustcli.jobs.verb_flags import MergeFlags
from robustcli.records.alarm import Alarm
from robustcli.records.document import Document
from robustcli.records.eval import EvalRow
from robustcli.runtime.signals import StopFlag
from robustcli.store.latest import resolve_run
from robustcli.store.rundir import open_run
from robustcli.store.sources import Source
from robustcli.terminal.console import Console


def merge(console: Console, flags: MergeFlags) -> dict[str, Any]:
    """Merge as asked; returns the `eval` document. The model is not needed.

    Raises:
        UsageError: no shards there, or parts of different evaluations.
        DataError: two runs disagree on a sample.
    """
    document = Document("eval")
    check_metrics(flags.fail_under)
    folders = run_folders(flags.runs)
    config = load_config(str(folders[0] / CONFIG), [], makes_model=False).config
    merged = _all_merged(folders, _places(config), console)
    result = merged.result
    gate = config.eval.model_copy(
        update={"fail_under": dict(flags.fail_under)}
    )  # of the whole, not of a part
    config = config.model_copy(update={"eval": gate})
    sources = [Source(f"the run {folder}", folder) for folder in folders]
    with (
        open_run("eval", flags.name, out=flags.out, overwrite=flags.overwrite, sources=sources) as run,
        StopFlag() as stop,
    ):
        write_inputs(run, config)
        stop.check()
        shards = [folder / place for place in _places(config) for folder in folders]
        more = {"queries": result.asked_elsewhere} if result.asked_elsewhere else {}
        answer = report(run, document, config, result, _rows(merged), console, more, shards=shards)
        if flags.report:
            leave_report(run, console)
    refuse_unreliable(result, run, flags.strict)
    return answer


def run_folders(runs: str) -> list[Path]:
    """The run directories that --merge names. Raises UsageError when it names none."""
    paths = [Path(text.strip()) for text in runs.split(",") if text.strip()]
    if not paths:
        raise UsageError("--merge names no run", hint="--merge RUN,RUN,...")
    return [resolve_run(path) for path in paths]


class _Merged(NamedTuple):
    """The common header of each ball, by the ball's name; the verdicts of all parts together."""

    headers: dict[str, Header]
    result: Evaluation


def _places(config: Config) -> list[Path]:
    """Where a run of this configuration has its shards; of a union those of each ball."""
    if not config.union:
        return [Path("shards")]
    return [Path("shards", ball.norm) for ball in config.balls]


def _all_merged(folders: Sequence[Path], places: Sequence[Path], console: Console) -> _Merged:
    """The evaluation, or of a union those of all balls united. Raises as `_merged`."""
    found = {}
    for place in places:
        header, result = _merged(folders, place, console)
        found[_ball_of(header)] = header, result
    headers = {name: header for name, (header, _) in found.items()}
    results = {name: result for name, (_, result) in found.items()}
    return _Merged(headers, united(results) if len(results) > 1 else next(iter(results.values())))


def _ball_of(header: Header) -> str:
    ball = header.plan["ball"]
    return threat_name(ball["norm"], ball["eps"])


def _merged(folders: Sequence[Path], place: Path, console: Console) -> tuple[Header, Evaluation]:
    """(the common header, the verdicts of all parts together). The audits of the parts are included.

    place: of the shards in each folder. Raises UsageError when no shard is complete.
    """
    shards = [folder / place for folder in folders]
    header, results = merge_shards(shards, console.warn)
    if not results:
        raise UsageError(
            "no shard of these runs is complete",
            where=", ".join(map(str, folders)),
            hint="finish them with --resume first",
        )
    _check(header, results, shards[0])
    result = _evaluation(header, results)
    if header.plan["audit"] is not None:
        looked, fallen, answers = audits(shards, header, console.warn)
        again = f"robustcli eval {folders[0] / CONFIG} 'attacks=[autoattack]'"
        advice = f"rapid is too weak here; run the whole of AutoAttack: {again}"
        result = joined(header.plan["seed"], result, looked, fallen, answers, advice)
    return header, result


def _check(header: Header, results: Sequence[ShardResult], folder: Path) -> None:
    """Raises DataError where header and shards do not make one evaluation, in spite of their right hashes."""
    try:
        check_mergeable(header.plan, header.about, header.alarms)
        labels = {call["label"] for call in header.plan["attacks"]}
        if any(part.stages.keys() != labels for part in results):
            raise ValueError("the shards are of other attacks than the header")
        if any(len(part.y) and not 0 <= int(part.y.max()) < len(header.about["classes"]) for part in results):
            raise ValueError("a label has no class")
    except ValueError as error:
        raise DataError(
            f"the shards make no evaluation: {error}", where=str(folder), hint="measure again"
        ) from error


def _rows(merged: _Merged) -> list[EvalRow]:
    """The records of the verdicts; data, model and ball are read from the headers."""
    headers, result = merged
    header = next(iter(headers.values()))
    about, plan = header.about, header.plan
    balls = {name: (each.plan["ball"]["norm"], each.plan["ball"]["eps"]) for name, each in headers.items()}
    ball = {"norm": plan["ball"]["norm"], "eps": plan["ball"]["eps"]}
    if result.parts:
        ball = {"norm": union_norm(dict(balls.values())), "eps": 0.0}
    common = {
        "data": about["data"],
        "split": about["split"],
        "model": about["model"],
        **ball,
        "seed": plan["seed"],
        "hashes": {**about["hashes"], "ids": short_ids_digest(result.ids)},
    }
    return rows_from(result, tuple(about["classes"]), common, balls)


def _evaluation(header: Header, results: Sequence[ShardResult]) -> Evaluation:
    """The verdicts of the shards as one evaluation, with the alarms that need all samples."""
    calls = tuple(_call(call) for call in header.plan["attacks"])
    seconds, passes, tallies = Counter[str](), Counter[str](), Counter[str]()
    for part in results:
        seconds.update(part.seconds)
        passes.update(part.passes)
        tallies.update(part.tallies)
    ids = torch.cat([part.ids for part in results])
    stages = {call.label: torch.cat([part.stages[call.label] for part in results]) for call in calls}
    correct = torch.cat([part.correct for part in results])
    known = [Alarm.from_json(alarm) for alarm in header.alarms]
    return Evaluation(
        ids=ids,
        labels=torch.cat([part.y for part in results]),
        correct=correct,
        answers=Answers.joined([part.answers for part in results]),
        stages=stages,
        seconds={call.label: float(seconds[call.label]) for call in calls},
        passes_per_sample={call.label: passes[call.label] / len(ids) for call in calls},
        alarms=concluded(known, tallies, calls, stages, correct, len(header.about["classes"])),
        total_seconds=float(sum(seconds.values())),
        apart=frozenset(call.label for call in calls if not call.bounded),
        calls=calls,
        total=header.n,
        shards=(len(results), header.shards),
        asked_elsewhere=tallies["queries"],
    )


def _call(stored: dict[str, Any]) -> AttackCall:
    """An attack of a stored plan, for tables only: it cannot be run."""

    def gone(*args: Any, **params: Any) -> Tensor:
        raise AssertionError("an attack read from a shard header is not run")

    facts = ("label", "name", "params", "kind", "needs", "precision")
    return AttackCall(fn=gone, **{name: stored[name] for name in facts})
