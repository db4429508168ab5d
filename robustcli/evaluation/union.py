"""The verdict in the union of several balls: a sample stands when it stands in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustcli.evaluation.answers import NONE, Answers
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.result import Evaluation
from robustcli.records.alarm import Alarm


def united(parts: Mapping[str, Evaluation]) -> Evaluation:
    """One evaluation from those in the single balls: name of the ball -> its verdicts, on the same samples.

    Its attacks are those of all balls, as ``pgd-20@linf:8/255``. Its survivors are the AND of the survivors
    of the parts, and so for the clean image. What broke a sample is what broke it in the first ball where it
    fell. Samples that only some of the balls have measured are left out.
    """
    common = _common([part.ids for part in parts.values()])
    within = {name: _rows(part, torch.isin(part.ids, common)) for name, part in parts.items()}
    first = next(iter(within.values()))
    correct = torch.stack([part.correct for part in within.values()]).all(0)
    stages = {f"{label}@{name}": part.stages[label] for name, part in within.items() for label in part.stages}
    return Evaluation(
        ids=first.ids,
        labels=first.labels,
        correct=correct,
        answers=_answers(list(within.values()), correct),
        stages={label: standing & correct for label, standing in stages.items()},
        seconds=_labelled({name: part.seconds for name, part in within.items()}),
        passes_per_sample=_labelled({name: part.passes_per_sample for name, part in within.items()}),
        alarms=_alarms(within),
        total_seconds=sum(part.total_seconds for part in within.values()),
        calls=tuple(call for name, part in within.items() for call in _calls(part, name)),
        total=first.total or first.n,
        shards=(min(part.shards[0] for part in within.values()), first.shards[1]),
        parts=within,
        asked_elsewhere=sum(part.asked_elsewhere for part in within.values()),
    )


def _common(ids: Sequence[Tensor]) -> Tensor:
    """The ids that all have, int64, sorted."""
    every, counts = torch.cat(list(ids)).unique(return_counts=True)
    return torch.masked_select(every, counts == len(ids))


def _rows(part: Evaluation, keep: Tensor) -> Evaluation:
    """The verdicts on some of the samples; keep: bool [n]."""
    if bool(keep.all()):
        return part
    return replace(
        part,
        ids=part.ids[keep],
        labels=part.labels[keep],
        correct=part.correct[keep],
        answers=part.answers.rows(keep.nonzero()[:, 0]),
        stages={label: standing[keep] for label, standing in part.stages.items()},
        total=part.total or part.n,
    )


def _answers(parts: Sequence[Evaluation], correct: Tensor) -> Answers:
    """The answers in the first ball where the sample fell.

    A randomised model may be right in one ball and wrong in another before an attack: the wrong answer stays.
    correct: bool [n], right on the clean image in all balls.
    """
    first = parts[0].answers
    clean, confidence = first.clean, first.confidence
    attacked = torch.full_like(first.attacked, NONE)
    for part in reversed(parts):
        clean = torch.where(part.correct, clean, part.answers.clean)
        confidence = torch.where(part.correct, confidence, part.answers.confidence)
        attacked = torch.where(correct & ~part.survivors, part.answers.attacked, attacked)
    return Answers(clean, confidence, attacked, first.files)


def _labelled(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Ball -> attack -> value, as attack@ball -> value."""
    return {f"{label}@{name}": value for name, part in values.items() for label, value in part.items()}


def _calls(part: Evaluation, name: str) -> list[AttackCall]:
    return [replace(call, label=f"{call.label}@{name}") for call in part.calls]


def _alarms(parts: Mapping[str, Evaluation]) -> list[Alarm]:
    """The alarms of all balls, each with the ball that it is of. One that all raise is of the model."""
    raised = [part.alarms for part in parts.values()]
    shared = [alarm for alarm in raised[0] if all(alarm in alarms for alarms in raised)]
    own = [
        replace(alarm, evidence=f"in {name}: {alarm.evidence}")
        for name, part in parts.items()
        for alarm in part.alarms
        if alarm not in shared
    ]
    return [*shared, *own]
