"""A short list checks itself: some of what it left standing meets short forms of what it leaves out, and all of it the long list when two fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.evaluation.alarms import with_new
from robustcli.evaluation.bound import LIMIT, Audit, most, most_of_one_draw
from robustcli.evaluation.escalation import EOT_DRAWS
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan, Evaluation
from robustcli.records.alarm import Alarm

PASSES = 25_000  # at most for the usual 64 samples, whatever n
_SPARE = (
    8  # passes per sample beside the searches: the clean point, starts, candidates that are no hits, rulings
)
LABEL = "rapid:audit"

#: (attacks, positions, name) -> their evaluation: the caller knows how to run it, and where its shards lie.
Again = Callable[[Sequence[AttackCall], Tensor, str], Evaluation]


def in_order(seed: int, ids: Tensor) -> Tensor:
    """Places of `ids` int64 [S] in the order H(seed, id): the first of them are audited, whoever else is in the evaluation."""
    drawn = RowRandom(seed, "audit", ids).integers(0, 2**22)
    by_id = ids.argsort()
    return by_id[drawn[by_id].argsort(stable=True)]


def depth(plan: AuditPlan, standing: int, *, part: bool, draws: int) -> tuple[int, int]:
    """(samples of the first draw, passes per sample): the fewer there are, the longer the searches; two draws stay within `PASSES`.

    part: of an evaluation in shards: it cannot know what the others find, and audits what a second draw would. draws: model passes per answer.
    """
    first = min(plan.samples, standing)
    size = min(2 * plan.samples, standing)
    budget = PASSES * plan.samples / 64  # who asks for another sample asks for as many passes on each
    passes = int(0.99 * budget / (draws * max(1, size))) - _SPARE
    if passes < 12:  # a randomised model: fewer samples, not shorter searches
        first = min(first, max(1, int(budget / (draws * 2 * (12 + _SPARE)))))
        passes = 12
    return (min(2 * first, standing) if part else first), passes


def audited(
    plan: EvalPlan, result: Evaluation, positions: Tensor, again: Again, *, part: bool
) -> tuple[Evaluation, tuple[Tensor, Tensor]]:
    """(the evaluation after its audit, (ids looked at, ids that fell)).

    A sample that falls counts as broken. One fall doubles the audit; a second ends it, and the plan's escalation runs on all survivors.
    part: only look: shards that other processes measure are missing.

    Args:
        plan: the final one, with an audit.
        result: of the plan's attacks; its survivors are audited.
        positions: int64 [n], of the samples of `result`.
        again: runs other attacks on some of these positions.
    """
    assert plan.audit is not None
    places = result.survivors.nonzero()[:, 0]
    order = places[in_order(plan.seed, result.ids[places])]
    if not plan.audit.samples or not len(order):
        empty = Audit(0, 0, 0.0 if not len(order) else len(order) / max(1, result.n))
        return replace(result, audit=empty), (result.ids[:0], result.ids[:0])
    first, passes = depth(plan.audit, len(order), part=part, draws=EOT_DRAWS if plan.randomised else 1)
    calls = list(plan.audit.short_forms(passes))
    looked, fallen, spent, seconds = order[:0], order[:0], 0.0, 0.0
    for draw in (order[:first], order[first : 2 * first]):
        if not len(draw) or (len(looked) and not (len(fallen) == 1 and not part)):
            break
        found = again(calls, positions[draw].sort().values, "")
        looked = torch.cat((looked, draw))
        gone = found.ids[~found.survivors]
        fallen = torch.cat((fallen, torch.isin(result.ids, gone).nonzero()[:, 0]))
        spent += sum(found.passes_per_sample.values()) * found.n
        seconds += found.total_seconds
    standing = result.survivors.clone()
    standing[fallen] = False
    result = _with_stage(
        result,
        LABEL,
        AttackCall(LABEL, "audit", _gone, {"samples": len(looked), "passes": passes}),
        standing,
        seconds,
        spent,
    )
    due = len(fallen) >= LIMIT
    if due and not part:
        result = escalated(result, again(list(plan.audit.escalation), positions[standing], "escalated"))
    bound = (
        None if due else (most(len(order), first, len(looked) - first, len(fallen)) - len(fallen)) / result.n
    )
    audit = Audit(
        len(looked), len(fallen), bound, escalated=due and not part, due=due and part, passes=round(spent)
    )
    return replace(result, audit=audit), (result.ids[looked], result.ids[fallen])


def joined(seed: int, result: Evaluation, looked: Tensor, fallen: Tensor, remedy: str) -> Evaluation:
    """The verdicts of all parts after the audits of the parts: ids looked at and fallen, int64.

    Every fall counts as broken. The bound stands on the longest run of the order H(seed, id) that was looked at without a gap. Two falls make
    the evaluation suspect: the long list is due, and `remedy` says how to run it.
    """
    places = result.survivors.nonzero()[:, 0]
    order = places[in_order(seed, result.ids[places])]
    run = int(torch.isin(result.ids[order], looked).long().cumprod(0).sum())
    gone = torch.isin(result.ids, fallen)
    falls, among = int(gone.sum()), int(gone[order[:run]].sum())
    n_looked = int(torch.isin(result.ids, looked).sum())
    call = AttackCall(LABEL, "audit", _gone, {"samples": n_looked})
    due = falls >= LIMIT
    bound = None if due else max(0, most_of_one_draw(len(order), run, among) - falls) / max(1, result.n)
    result = replace(result, audit=Audit(n_looked, falls, bound, due=due))
    if n_looked:
        result = _with_stage(result, LABEL, call, result.survivors & ~gone, 0.0, 0.0)
    alarm = Alarm(
        "escalation-due", "suspect", f"{falls} of {n_looked} audited survivors of rapid fell", remedy
    )
    return replace(result, alarms=with_new(result.alarms, [alarm])) if due else result


def escalated(result: Evaluation, more: Evaluation) -> Evaluation:
    """`result` with the stages of an evaluation of its survivors behind its own."""
    at = torch.isin(result.ids, more.ids)
    for call in more.calls:
        standing = torch.zeros_like(result.correct)
        standing[at] = more.stages[call.label]
        result = _with_stage(
            result,
            call.label,
            call,
            standing,
            more.seconds[call.label],
            more.passes_per_sample[call.label] * more.n,
        )
    return replace(
        result,
        alarms=with_new(result.alarms, more.alarms),
        total_seconds=result.total_seconds + more.total_seconds,
    )


def _with_stage(
    result: Evaluation, label: str, call: AttackCall, standing: Tensor, seconds: float, passes: float
) -> Evaluation:
    """One stage more, behind the others."""
    return replace(
        result,
        stages={**result.stages, label: standing},
        seconds={**result.seconds, label: seconds},
        passes_per_sample={**result.passes_per_sample, label: passes / max(1, result.n)},
        calls=(*result.calls, call),
    )


def _gone(*args: Any, **params: Any) -> Tensor:
    raise AssertionError("an audit is no attack that runs by itself")
