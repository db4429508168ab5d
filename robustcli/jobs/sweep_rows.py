"""Accuracy at each value of a sweep, one `SweepRow` per value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.assembly.attacks import eval_plan, numbered
from robustcli.assembly.ranges import Sweep
from robustcli.assembly.rows import hashes_of, short_ids_digest
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.data.split import Split
from robustcli.errors import UsageError
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.pulse import Beat
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.records.eval import EvalRow
from robustcli.records.sweep import Change, SweepRow
from robustcli.runtime.team import Team
from robustcli.terminal.once import each_once


def sweep_rows(
    setting: Setting,
    model: nn.Module,
    sweep: Sweep,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[Beat], None] | None = None,
    team: Team | None = None,
) -> Iterator[SweepRow]:
    """One row per value, yielded when it is measured.

    stop: raises to interrupt. say: shows one line to the user. beat: told where the work is. team: the
    processes that measure together.
    """
    split, positions = samples(setting)
    plan, said = _plan(setting, sweep), each_once(say)

    def evaluate(plan: EvalPlan, where: Tensor) -> Evaluation:
        evaluation = RobustEvaluation(model, plan, stop=stop, say=said, beat=beat, team=team)
        return evaluation.run(split, where, setting.device)

    clean = evaluate(replace(plan, attacks=[]), positions)
    common = _common(setting, model, clean)
    open_rows = _kept(split, positions, clean.ids[clean.correct])
    standing: dict[float, Tensor] = {}
    for value in sweep.values:
        at = _at(plan, sweep.key, value)
        left, seconds, passes = open_rows, 0.0, 0.0
        if len(open_rows) and at.ball.eps > 0:
            result = evaluate(at, open_rows)
            left, seconds = _kept(split, open_rows, result.ids[result.survivors]), result.total_seconds
            passes = sum(result.passes_per_sample.values()) * result.n / clean.n
        standing[value] = left
        if sweep.key == "eps":  # a point that was found here is valid at every larger radius
            open_rows = left
        cost = {"seconds": seconds, "passes_per_sample": passes}
        yield SweepRow(
            total=_total(at, correct=len(left), **cost, **common),
            key=sweep.key,
            value=value,
            attacks=[{"name": call.name, "params": dict(call.params)} for call in at.attacks],
            since_half=_since_half(standing, value),
        )


def swept_calls(calls: Sequence[AttackCall], key: str) -> list[AttackCall]:
    """The attacks in the ball that have the parameter `key`, labelled without its value.

    For eps these are all attacks in the ball. Raises UsageError when there is none.
    """
    bounded = [call for call in calls if call.bounded]
    if key == "eps":
        return _some(bounded, key, "stays inside the ball")
    able = [call for call in bounded if key in registry.parameters(call.fn)]
    able = _some(able, key, f"takes {key}")
    labels = numbered([call.name for call in able])
    return [replace(call, label=label) for call, label in zip(able, labels, strict=True)]


def _some(calls: list[AttackCall], key: str, what: str) -> list[AttackCall]:
    """`calls`. Raises UsageError when it is empty: none of the attacks `what`, such as "takes steps"."""
    if not calls:
        raise UsageError(f"--sweep {key}: none of the attacks {what}", where="eval.sweep")
    return calls


def _plan(setting: Setting, sweep: Sweep) -> EvalPlan:
    """The configured plan with the swept attacks, without diagnosis and audit."""
    config = setting.config
    plan = eval_plan(setting, config.attacks, target=config.eval.target)
    return replace(plan, attacks=swept_calls(plan.attacks, sweep.key), checks=0, audit=None)


def _at(plan: EvalPlan, key: str, value: float) -> EvalPlan:
    """The plan at one value. For eps a configured step_size is scaled with the radius, but not under l0."""
    if key != "eps":
        return replace(plan, attacks=[_with(call, key, value) for call in plan.attacks])
    attacks = []
    for call in plan.attacks:
        size = call.params.get("step_size")
        if size is not None and plan.ball.norm != "l0":
            call = _with(call, "step_size", size * value / plan.ball.eps)
        attacks.append(call)
    return replace(plan, ball=replace(plan.ball, eps=value), attacks=attacks)


def _with(call: AttackCall, name: str, value: float) -> AttackCall:
    """The attack with one parameter replaced."""
    return replace(call, params={**call.params, name: value})


def _kept(split: Split, positions: Tensor, ids: Tensor) -> Tensor:
    """The `positions`, int64 [n], whose samples have one of the `ids`."""
    return positions[torch.isin(split.ids[positions], ids)]


def _common(setting: Setting, model: nn.Module, clean: Evaluation) -> dict[str, Any]:
    """The fields that all rows of a sweep share."""
    config = setting.config
    return {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.label,
        "norm": setting.ball.norm,
        "seed": config.seed,
        "n": clean.n,
        "clean_correct": int(clean.correct.sum()),
        "hashes": {**hashes_of(setting, model), "ids": short_ids_digest(clean.ids)},
    }


def _total(plan: EvalPlan, **measured: Any) -> EvalRow:
    """The record of the verdicts under all attacks of the plan together."""
    label = ", ".join(call.label for call in plan.attacks)
    return EvalRow(kind="worst", label=label, eps=plan.ball.eps, **measured)


def _since_half(standing: Mapping[float, Tensor], value: float) -> Change | None:
    """What changed since the largest earlier value <= value / 2; None without such a value.

    standing: value -> int64, positions of the samples that stand at it.
    """
    earlier = max((other for other in standing if 0 < other <= value / 2), default=None)
    if earlier is None:
        return None
    before, now = standing[earlier], standing[value]
    return Change(
        value=earlier,
        fell=int((~torch.isin(before, now)).sum()),
        recovered=int((~torch.isin(now, before)).sum()),
    )
