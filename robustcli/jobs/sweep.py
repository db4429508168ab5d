"""`eval --sweep KEY=VALUES`: accuracy against the radius, the steps or the restarts, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.assembly.compose import Setting, eval_plan, numbered, samples
from robustcli.assembly.ranges import Sweep
from robustcli.assembly.rows import hashes_of, ids_digest
from robustcli.data.split import Split
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import Alarm
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.jobs.distances import minimal_calls, run_distances
from robustcli.proportions import Rate, sign_test
from robustcli.records.rows import EvalRow
from robustcli.reporting.cells import format_eps
from robustcli.reporting.curves import sweep_curve, sweep_table
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_NONE_LEFT = 0.01  # accuracy that counts as zero
_CHANCE = 0.025


def check_sweep(sweep: Sweep, setting: Setting) -> None:
    """Raises UsageError before any work is done: a radius in the wrong unit, or no attack with the swept parameter."""
    if sweep.key == "eps" and setting.ball.norm == "linf" and sweep.values[-1] > 1:
        last = sweep.values[-1]
        raise UsageError(
            f"--sweep eps: {last:g} is not on the [0,1] scale; did you mean {last:g}/255?", where="eval.sweep"
        )
    calls = eval_plan(setting, setting.config.attacks).attacks
    if sweep.key == "distance":
        minimal_calls(calls, setting.config.eval.target)
    else:
        _swept(calls, sweep.key)


def run_sweep(
    setting: Setting, model: nn.Module, console: Console, stop: Callable[[], None], sweep: Sweep, run: Run
) -> tuple[list[dict[str, Any]], list[Alarm]]:
    """Measure every value on the same samples; writes sweep.jsonl and plots/sweep_KEY.png and shows a table: (rows, alarms).

    eps: a point found at a smaller radius stays valid, so only samples still standing are attacked and accuracy never rises.
    steps, restarts: every value anew, for a plateau is what is looked for. distance: see `jobs.distances`.
    """
    check_sweep(sweep, setting)
    if sweep.key == "distance":
        return run_distances(setting, model, console, stop, run), []
    rows: list[dict[str, Any]] = []
    with (
        console.progress(len(sweep.values), f"sweep over {sweep.key}") as bar,
        JsonLines(run.path / "sweep.jsonl") as lines,
    ):
        lines.truncate(0)
        for row in measured(setting, model, sweep, stop, console.warn):
            rows.append(row)
            lines.write(row)
            bar.advance(robust=f"{row['robust_acc']:.1%}")
    last, ball = rows[-1], setting.ball
    threat = f"{ball.norm} {format_eps(ball.eps, ball.norm)}"
    title = f"{setting.data.name}: {last['label']}" + ("" if sweep.key == "eps" else f", {threat}")
    points = [(row["value"], Rate(row["correct"], row["n"])) for row in rows]
    clean = Rate(last["clean_correct"], last["n"])
    sweep_curve(
        run.path / "plots" / f"sweep_{sweep.key}.png",
        sweep.key,
        points,
        clean=clean,
        title=title,
        norm=ball.norm,
    )
    console.table(sweep_table(sweep.key, rows, f"sweep: {title}"))
    if sweep.key == "eps" and last["robust_acc"] > _NONE_LEFT and sweep.values[-1] < grey_radius(setting):
        console.info(
            f"{last['robust_acc']:.1%} still stand at the largest radius; a sweep up to {grey_radius(setting):g} shows whether accuracy falls to 0"
        )
    return rows, sweep_alarms(sweep, rows, grey_radius(setting))


def grey_radius(setting: Setting) -> float:
    """0.5 * d^(1/p): within this distance every image of d pixels can be made uniformly grey, so no model is right on many."""
    return 0.5 * float(
        math.prod(setting.data.shape) ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[setting.ball.norm]
    )


def measured(
    setting: Setting,
    model: nn.Module,
    sweep: Sweep,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per value: an `EvalRow` of all attacks together, the value, and how the verdicts differ from those at half of it."""
    config, (split, positions) = setting.config, samples(setting)
    plan = replace(eval_plan(setting, config.attacks, target=config.eval.target), checks=0, audit=None)
    plan = replace(plan, attacks=_swept(plan.attacks, sweep.key))
    said = _once(say)

    def evaluate(plan: EvalPlan, where: Tensor) -> Evaluation:
        return RobustEvaluation(model, plan, stop=stop, say=said).run(split, where, setting.device)

    first = evaluate(replace(plan, attacks=[]), positions)
    right = _kept(split, positions, first.ids[first.correct])
    common = _common(setting, model, first)
    open_rows, standing = right, dict[float, Tensor]()
    for value in sweep.values:
        at = _at(plan, sweep.key, value)
        left, seconds, passes = open_rows, 0.0, 0.0
        if len(open_rows) and at.ball.eps > 0:
            result = evaluate(at, open_rows)
            left, seconds = _kept(split, open_rows, result.ids[result.survivors]), result.total_seconds
            passes = sum(result.passes_per_sample.values()) * result.n / first.n
        standing[value] = left
        open_rows = left if sweep.key == "eps" else right
        label = ", ".join(call.label for call in at.attacks)
        row = EvalRow(
            kind="worst",
            label=label,
            eps=at.ball.eps,
            correct=len(left),
            seconds=seconds,
            passes_per_sample=passes,
            **common,
        )
        named = [{"name": call.name, "params": dict(call.params)} for call in at.attacks]
        yield {
            **row.to_json(),
            "kind": "sweep",
            "key": sweep.key,
            "value": value,
            "attacks": named,
            "since_half": _since_half(standing, value),
        }


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """What there is to say of a model is the same at every value."""
    heard: set[str] = set()

    def told(text: str) -> None:
        if text not in heard:
            heard.add(text)
            say(text)

    return told


def _kept(split: Split, positions: Tensor, ids: Tensor) -> Tensor:
    """The positions of these samples."""
    return positions[torch.isin(split.ids[positions], ids)]


def _common(setting: Setting, model: nn.Module, clean: Evaluation) -> dict[str, Any]:
    """What all rows of a sweep share."""
    config = setting.config
    names = {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.name,
        "norm": setting.ball.norm,
        "seed": config.seed,
    }
    hashes = {**hashes_of(setting, model), "ids": ids_digest(clean.ids)}
    return {**names, "n": clean.n, "clean_correct": int(clean.correct.sum()), "hashes": hashes}


def _swept(calls: Sequence[AttackCall], key: str) -> list[AttackCall]:
    """The attacks inside the ball that have the swept parameter, labelled without its value. Raises UsageError when there is none."""
    found = [call for call in calls if call.bounded and (key == "eps" or key in registry.parameters(call.fn))]
    if not found:
        raise UsageError(
            f"--sweep {key}: none of the attacks {'stays inside the ball' if key == 'eps' else f'takes {key}'}",
            where="eval.sweep",
        )
    if key == "eps":
        return found
    return [
        replace(call, label=label)
        for call, label in zip(found, numbered([call.name for call in found]), strict=True)
    ]


def _at(plan: EvalPlan, key: str, value: float) -> EvalPlan:
    """The plan at one value; a configured step_size keeps its share of the radius."""
    if key != "eps":
        return replace(
            plan, attacks=[replace(call, params={**call.params, key: value}) for call in plan.attacks]
        )
    attacks = []
    for call in plan.attacks:
        size = call.params.get("step_size")
        attacks.append(
            call
            if size is None
            else replace(call, params={**call.params, "step_size": size * value / plan.ball.eps})
        )
    return replace(plan, ball=replace(plan.ball, eps=value), attacks=attacks)


def _since_half(standing: Mapping[float, Tensor], value: float) -> dict[str, Any] | None:
    """What doubling the value (the largest earlier one <= value / 2) changed: samples that fell, samples that stand again."""
    earlier = [other for other in standing if 0 < other <= value / 2]
    if not earlier:
        return None
    before, now = standing[max(earlier)], standing[value]
    return {
        "value": max(earlier),
        "fell": int((~torch.isin(before, now)).sum()),
        "recovered": int((~torch.isin(now, before)).sum()),
    }


def sweep_alarms(sweep: Sweep, rows: Sequence[Mapping[str, Any]], grey: float) -> list[Alarm]:
    """`large-eps-survivors`: more than 1 % stand where every image can be made grey. `not-converged`: the last doubling of steps
    or restarts still broke more samples than chance allows (exact sign test on the same samples, one-sided, 2.5 %).

    Source: Carlini et al., On Evaluating Adversarial Robustness, 2019, arXiv:1902.06705, section 5.
    """
    last = rows[-1]
    if sweep.key == "eps":
        if last["value"] < grey or last["robust_acc"] <= _NONE_LEFT:
            return []
        stand = (
            f"{last['robust_acc']:.1%} of {last['n']} samples stand at {last['norm']} eps {last['value']:g}"
        )
        evidence = f"{stand}, where every image can be made uniformly grey"
        return [
            Alarm(
                "large-eps-survivors",
                "suspect",
                evidence,
                "the attack fails, not the radius: add apgd, more steps or a gradient-free attack",
            )
        ]
    since = last["since_half"]
    if since is None or sign_test(since["fell"], since["recovered"]) > _CHANCE:
        return []
    evidence = f"going from {since['value']:g} to {last['value']:g} {sweep.key} broke {since['fell']} more samples and lost {since['recovered']}"
    return [
        Alarm("not-converged", "suspect", evidence, f"give the attacks more {sweep.key} until accuracy stays")
    ]
