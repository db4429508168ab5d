"""An audit checks a short list of attacks on some of its survivors.

The audited survivors meet short forms of the attacks that the list leaves out. When one of them falls, as
many survivors again are audited. When two fall in all, every survivor meets the long list
(`AuditPlan.escalation`). An evaluation is audited when `EvalPlan.audit` is set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.evaluation.alarms import with_new
from robustcli.evaluation.answers import NONE
from robustcli.evaluation.bound import LIMIT, Audit, most_breakable, most_breakable_of_one_draw
from robustcli.evaluation.draws import EOT_DRAWS
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan
from robustcli.evaluation.result import Evaluation
from robustcli.records.alarm import Alarm

PASSES = 25_000  # most model passes of an audit that draws 64 samples at a time
_SPARE = 8  # passes per sample beside the searches: clean point, starts, refused candidates, judgements
_SHORTEST = 12  # passes per sample, at least: a shorter search says nothing
LABEL = "rapid:audit"

#: (attacks, positions int64 [m], name) -> evaluation of these attacks at these positions. name: folder of its
#: shards; "" keeps no shards.
Rerun = Callable[[Sequence[AttackCall], Tensor, str], Evaluation]


def in_order(seed: int, ids: Tensor) -> Tensor:
    """Places of `ids`, int64 [S], sorted by the hash H(seed, id) of each id.

    An audit takes the first of them. The hash of a sample depends on no other sample.
    """
    drawn = RowRandom(seed, "audit", ids).integers(0, 2**22)
    by_id = ids.argsort()
    return by_id[drawn[by_id].argsort(stable=True)]


def depth(plan: AuditPlan, standing: int, *, part: bool, draws: int) -> tuple[int, int]:
    """(size of the first draw, model passes per sample): the fewer survivors, the longer the searches.

    Two draws cost at most `PASSES` for `plan.samples` = 64, and in proportion for other numbers.

    Args:
        plan: how many samples one draw asks for.
        standing: survivors to draw from, >= 1.
        part: the evaluation is one part of several. It does not know who falls in the others, so its first
            draw is as large as two.
        draws: model passes averaged per answer of the model.
    """
    first = min(plan.samples, standing)
    size = min(2 * plan.samples, standing)
    budget = PASSES * plan.samples / 64
    passes = int(0.99 * budget / (draws * max(1, size))) - _SPARE
    if passes < _SHORTEST:  # a randomised model: fewer samples, not shorter searches
        first = min(first, max(1, int(budget / (draws * 2 * (_SHORTEST + _SPARE)))))
        passes = _SHORTEST
    if part:
        first = min(2 * first, standing)
    return first, passes


@dataclass(frozen=True)
class _Look:
    """What the draws of an audit found.

    looked, fallen: int64, places in the evaluation of the audited and of the fallen samples. answers: int64,
    the classes at the points that broke the fallen ones. passes: model passes. seconds: time.
    """

    looked: Tensor
    fallen: Tensor
    answers: Tensor
    passes: float
    seconds: float

    def __add__(self, other: _Look) -> _Look:
        """The findings of two draws together."""
        return _Look(
            torch.cat((self.looked, other.looked)),
            torch.cat((self.fallen, other.fallen)),
            torch.cat((self.answers, other.answers)),
            self.passes + other.passes,
            self.seconds + other.seconds,
        )


def audited(
    plan: EvalPlan, result: Evaluation, positions: Tensor, rerun: Rerun, *, part: bool
) -> tuple[Evaluation, tuple[Tensor, Tensor]]:
    """(the evaluation after its audit, (ids that were audited, ids that fell)), ids int64.

    A sample that falls counts as broken. One fall leads to a second draw. Two falls lead to the plan's
    escalation on all survivors. A part of an evaluation makes one draw and never escalates.

    Args:
        plan: the final plan, with an audit.
        result: verdicts under the plan's attacks; its survivors are audited.
        positions: int64 [n], positions in the split of the samples of `result`.
        rerun: runs other attacks on some of these positions.
        part: other processes measure the other shards.
    """
    assert plan.audit is not None
    order = _survivors_in_order(plan.seed, result)
    if not plan.audit.samples or not len(order):
        unaudited = Audit(0, 0, bound=len(order) / max(1, result.n))
        return replace(result, audit=unaudited), (result.ids[:0], result.ids[:0])
    first, passes = depth(plan.audit, len(order), part=part, draws=plan.draws(EOT_DRAWS))
    short_forms = list(plan.audit.short_forms(passes))
    look = _look(result, positions, order[:first], short_forms, rerun)
    second = order[first : 2 * first]
    if len(look.fallen) == 1 and len(second) and not part:
        look += _look(result, positions, second, short_forms, rerun)
    standing = result.survivors.clone()
    standing[look.fallen] = False
    call = _audit_call(samples=len(look.looked), passes=passes)
    ids = result.ids[look.looked], result.ids[look.fallen]
    result = replace(result, answers=result.answers.broken(look.fallen, look.answers))
    result = _with_stage(result, call, standing, look.seconds, look.passes)
    due = len(look.fallen) >= LIMIT
    if due and not part:
        long_list = list(plan.audit.escalation)
        result = escalated(result, rerun(long_list, positions[standing], "escalated"))
    audit = Audit(
        n=len(look.looked),
        fallen=len(look.fallen),
        bound=_bound(look, len(order), first, result.n),
        escalated=due and not part,
        due=due and part,
        passes=round(look.passes),
    )
    return replace(result, audit=audit), ids


def joined(
    seed: int, result: Evaluation, looked: Tensor, fallen: Tensor, answers: Tensor, remedy: str
) -> Evaluation:
    """The verdicts of all parts of an evaluation, after the audits of the parts.

    Every sample that fell counts as broken. In the order of H(seed, id), the bound counts the samples up to
    the first that was not audited; they are one draw. Two falls make the evaluation suspect: the long list
    should run.

    Args:
        seed: of the plan.
        result: the verdicts of all parts, without their audits.
        looked, fallen: int64, ids that were audited and that fell, sorted, over all parts.
        answers: int64, the classes at the points that broke the fallen ones.
        remedy: tells the user how to run the long list.
    """
    order = _survivors_in_order(seed, result)
    drawn = int(torch.isin(result.ids[order], looked).long().cumprod(0).sum())
    gone = torch.isin(result.ids, fallen)
    known = answers[torch.isin(fallen, result.ids)]
    result = replace(result, answers=result.answers.broken(gone.nonzero()[:, 0], known))
    falls, n_looked = int(gone.sum()), int(torch.isin(result.ids, looked).sum())
    falls_drawn = int(gone[order[:drawn]].sum())
    if n_looked:
        result = _with_stage(result, _audit_call(samples=n_looked), result.survivors & ~gone, 0.0, 0.0)
    if falls < LIMIT:
        more = max(0, most_breakable_of_one_draw(len(order), drawn, falls_drawn) - falls)
        return replace(result, audit=Audit(n_looked, falls, bound=more / max(1, result.n)))
    evidence = f"{falls} of {n_looked} audited survivors of rapid fell"
    alarm = Alarm("escalation-due", "suspect", evidence, remedy)
    audit = Audit(n_looked, falls, bound=None, due=True)
    return replace(result, audit=audit, alarms=with_new(result.alarms, [alarm]))


def escalated(result: Evaluation, more: Evaluation) -> Evaluation:
    """`result` with further stages: those of `more`, an evaluation of its survivors."""
    at = torch.isin(result.ids, more.ids)
    broken = more.answers.attacked != NONE
    answers = result.answers.broken(at.nonzero()[broken, 0], more.answers.attacked[broken])
    result = replace(result, answers=answers)
    for call in more.calls:
        standing = torch.zeros_like(result.correct)
        standing[at] = more.stages[call.label]
        passes = more.passes_per_sample[call.label] * more.n
        result = _with_stage(result, call, standing, more.seconds[call.label], passes)
    return replace(
        result,
        alarms=with_new(result.alarms, more.alarms),
        total_seconds=result.total_seconds + more.total_seconds,
    )


def _survivors_in_order(seed: int, result: Evaluation) -> Tensor:
    """Places of the survivors, int64, in the order in which they are audited."""
    places = result.survivors.nonzero()[:, 0]
    return places[in_order(seed, result.ids[places])]


def _look(
    result: Evaluation, positions: Tensor, places: Tensor, attacks: Sequence[AttackCall], rerun: Rerun
) -> _Look:
    """Run `attacks` on the samples at `places`, int64, of `result`; who fell, and the cost."""
    seen = rerun(attacks, positions[places].sort().values, "")
    fell = ~seen.survivors
    fallen = torch.isin(result.ids, seen.ids[fell]).nonzero()[:, 0]
    # A randomised model may be wrong on a clean image that it was right on before.
    answers = seen.answers.attacked.where(seen.correct, seen.answers.clean)[fell]
    return _Look(places, fallen, answers, sum(seen.passes_per_sample.values()) * seen.n, seen.total_seconds)


def _bound(look: _Look, standing: int, first: int, n: int) -> float | None:
    """Largest share of the n samples that the audit's attacks may still break; None from `LIMIT` falls on.

    The samples that fell are not part of it. standing: survivors before the audit. first: size of the first
    draw.
    """
    looked, fallen = len(look.looked), len(look.fallen)
    if fallen >= LIMIT:
        return None
    return (most_breakable(standing, first, looked - first, fallen) - fallen) / n


def _with_stage(
    result: Evaluation, call: AttackCall, standing: Tensor, seconds: float, passes: float
) -> Evaluation:
    """`result` with one stage more at the end.

    standing: bool [n], right after the stage. seconds, passes: spent on the stage in all.
    """
    per_sample = passes / max(1, result.n)
    return replace(
        result,
        stages={**result.stages, call.label: standing},
        seconds={**result.seconds, call.label: seconds},
        passes_per_sample={**result.passes_per_sample, call.label: per_sample},
        calls=(*result.calls, call),
    )


def _audit_call(**params: int) -> AttackCall:
    """The audit as a stage in tables; it cannot be run."""
    return AttackCall(LABEL, "audit", _never_run, params)


def _never_run(*args: Any, **params: Any) -> Tensor:
    raise AssertionError("an audit is no attack that runs by itself")
