"""Evaluations in parts: what a shard's verdicts depend on, and one result from the shards of many runs."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.assembly.compose import Setting
from robustcli.assembly.rows import hashes_of, ids_digest, rows_from
from robustcli.config.load import load_config
from robustcli.config.schema import Config
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import Alarm
from robustcli.evaluation.audit import joined
from robustcli.evaluation.collect import concluded
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.shardfile import ShardResult
from robustcli.evaluation.shards import audits
from robustcli.evaluation.shards import merge as merge_shards
from robustcli.records.rows import EvalRow
from robustcli.runtime.seed import PACKAGE, hash_tree
from robustcli.store.latest import resolve_run
from robustcli.terminal.console import Console

_JUDGING = ("attacks", "core", "evaluation", "models")  # the source that a verdict depends on


def header_of(
    setting: Setting, model: nn.Module, plan: EvalPlan, ids: Tensor, alarms: Sequence[Alarm]
) -> Header:
    """The header of an evaluation's shards: model, data, judging code, final plan and all chosen samples."""
    config, hashes = setting.config, hashes_of(setting, model)
    about = {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.name,
        "classes": list(setting.data.classes),
        "hashes": hashes,
    }
    code = "-".join(hash_tree(PACKAGE / name)[:16] for name in _JUDGING)
    digests = {
        "model": f"{hashes['model']} {forward_digest(model)}",
        "data": f"{setting.data.digest} {config.eval.split}",
        "code": code,
    }
    return Header.of(
        plan,
        ids,
        size=config.eval.shard_size,
        about=about,
        alarms=[alarm.to_json() for alarm in alarms],
        **digests,
    )


def forward_digest(model: nn.Module) -> str:
    """SHA-256 over the structure and the source of a model's own code: weights alone do not say what a forward pass does."""
    digest = hashlib.sha256(repr(model).encode())
    for kind in sorted(
        {type(module) for module in model.modules()}, key=lambda kind: (kind.__module__, kind.__qualname__)
    ):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if kind.__module__.partition(".")[0] in ("torch", "torchvision", "timm", "robustcli"):
            continue  # their versions are in env.json; ours is in the code hash
        try:
            digest.update(Path(inspect.getsourcefile(kind) or "").read_bytes())
        except (TypeError, OSError):
            continue  # defined at a prompt: its name must do
    return digest.hexdigest()[:16]


def merged(runs: Sequence[Path], console: Console) -> tuple[Evaluation, list[EvalRow], Config]:
    """One evaluation from the shards of these run directories, its records, and the configuration of the first run.

    Raises UsageError: no shards there, or parts of different evaluations. DataError: two runs disagree on a sample.
    """
    if not runs:
        raise UsageError("--merge names no run", hint="--merge RUN,RUN,...")
    folders = [resolve_run(path) for path in runs]
    header, results = merge_shards([folder / "shards" for folder in folders], console.warn)
    config = load_config(str(folders[0] / "config.resolved.yaml"), []).config
    if not results:
        raise UsageError(
            "no shard of these runs is complete",
            where=", ".join(map(str, folders)),
            hint="finish them with --resume first",
        )
    result = _evaluation(header, results)
    if header.plan["audit"] is not None:
        looked, fallen = audits([folder / "shards" for folder in folders], header, console.warn)
        again = f"robustcli eval {folders[0] / 'config.resolved.yaml'} 'attacks=[autoattack]'"
        result = joined(
            header.plan["seed"],
            result,
            looked,
            fallen,
            f"rapid is too weak here; run the whole of AutoAttack: {again}",
        )
    about, plan = dict(header.about), header.plan
    hashes = {**about["hashes"], "ids": ids_digest(result.ids)}
    named = {key: about[key] for key in ("data", "split", "model")}
    common = {
        **named,
        "norm": plan["ball"]["norm"],
        "eps": plan["ball"]["eps"],
        "seed": plan["seed"],
        "hashes": hashes,
    }
    return result, rows_from(result, tuple(about["classes"]), common), config


def _evaluation(header: Header, results: Sequence[ShardResult]) -> Evaluation:
    """Verdicts of the shards put together, with the alarms that need all of them."""
    calls = tuple(_call(call) for call in header.plan["attacks"])
    seconds, passes, tallies = Counter[str](), Counter[str](), Counter[str]()
    for part in results:
        seconds.update(part.seconds)
        passes.update(part.passes)
        tallies.update(part.tallies)
    ids, stages = (
        torch.cat([part.ids for part in results]),
        {call.label: torch.cat([part.stages[call.label] for part in results]) for call in calls},
    )
    alarms = concluded([Alarm(**alarm) for alarm in header.alarms], tallies, calls, stages, len(ids))
    return Evaluation(
        ids,
        torch.cat([part.y for part in results]),
        torch.cat([part.correct for part in results]),
        stages,
        {call.label: float(seconds[call.label]) for call in calls},
        {call.label: passes[call.label] / len(ids) for call in calls},
        alarms,
        float(sum(seconds.values())),
        frozenset(call.label for call in calls if not call.bounded),
        calls,
        header.n,
        shards=(len(results), header.shards),
    )


def _call(stored: dict[str, Any]) -> AttackCall:
    """An attack of a stored plan: enough for tables; it can no longer be run."""

    def gone(*args: Any, **params: Any) -> Tensor:
        raise AssertionError("an attack read from a shard header is not run")

    return AttackCall(
        stored["label"],
        stored["name"],
        gone,
        stored["params"],
        stored["kind"],
        stored["needs"],
        precision=stored["precision"],
    )
