"""What an evaluation found: the verdicts on one batch, and on all samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.evaluation.answers import NONE, Answers
from robustcli.evaluation.bound import Audit
from robustcli.evaluation.plan import AttackCall
from robustcli.proportions import Rate, at_chance
from robustcli.records.alarm import Alarm, reliability


@dataclass(frozen=True)
class BatchOutcome:
    """One batch after all attacks: tensors over its B rows, on the device.

    Args:
        ids, x, y: sample ids int64 [B], clean pixels [B, C, H, W] in [0, 1] and labels int64 [B].
        x_adv: [B, C, H, W]; of a broken row the point that broke it, else the point that the last attack in
            the ball returned; x where none ran on the row.
        clean_predicted, predicted: int64 [B], the model's labels for x and x_adv.
        confidence: float32 [B], the softmax probability of the label for x; NaN where logits are not finite.
        correct: bool [B], right on the clean image.
        standing: per attack bool [B]: right after it and all attacks in the ball before it. For an unbounded
            attack: right on the clean image and under this attack alone.
        seconds, passes: per attack, its time and its model passes over all rows.
        tallies: name -> count, from which alarms are made.
        survivors: bool [B], right on the clean image and under every attack that counts: those in the ball,
            or all where none is.
        bounded: whether the attacks that count are in the ball.
        goal: int64 [B], the label that a targeted attack heads for; None when untargeted.
        draws: model passes per judgement.
    """

    ids: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    clean_predicted: Tensor
    predicted: Tensor
    confidence: Tensor
    correct: Tensor
    standing: list[Tensor]
    seconds: list[float]
    passes: list[int]
    tallies: dict[str, int]
    survivors: Tensor
    bounded: bool = True
    goal: Tensor | None = None
    draws: int = 1

    @property
    def attacked(self) -> Tensor:
        """int64 [B], the label at the point that broke the row; `answers.NONE` where none did."""
        return self.predicted.where(self.correct & ~self.survivors, NONE)


@dataclass(frozen=True)
class Evaluation:
    """Verdicts on n samples: tensors [n] on the CPU, in the order of `ids`, which are sorted.

    Args:
        ids, labels: int64 [n].
        correct: bool [n], right on the clean image.
        answers: what the model answered.
        stages: label -> bool [n]: correct, and right after that attack and all before it. For the labels in
            `apart`: correct, and right under that attack alone.
        seconds, passes_per_sample: by label.
        alarms: signs that these numbers must not be believed.
        total_seconds: of the whole evaluation.
        apart: labels of the unbounded attacks, whose breaks do not count against the ball.
        calls: the attacks, in the order they ran.
        total: samples of the whole evaluation, of which this may be a part; 0 = n.
        shards: (how many are complete, of how many).
        parts: of a union of balls: name of each ball -> the verdicts in it. Empty for one ball.
        asked_elsewhere: how many images a black box was asked about for these verdicts by other processes, or
            before a resume.
        audit: what the audit found, None without one. A sample that fell there counts as broken in the
            stages and in `survivors`.
    """

    ids: Tensor
    labels: Tensor
    correct: Tensor
    answers: Answers
    stages: dict[str, Tensor]
    seconds: dict[str, float]
    passes_per_sample: dict[str, float]
    alarms: list[Alarm]
    total_seconds: float
    apart: frozenset[str] = frozenset()
    calls: tuple[AttackCall, ...] = ()
    total: int = 0
    shards: tuple[int, int] = (0, 0)
    asked_elsewhere: int = 0
    audit: Audit | None = None
    parts: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def survivors(self) -> Tensor:
        """bool [n]: right on the clean image and under all attacks in the ball.

        If no attack of the list is in the ball: right under all attacks.
        """
        return torch.stack([self.correct, *(self.stages[label] for label in self.counted)]).all(0)

    @property
    def counted(self) -> list[str]:
        """Labels of the attacks whose breaks count, in the order they ran: those in the ball, or all."""
        return [label for label in self.stages if label not in self.apart] or list(self.stages)

    @property
    def broken_by(self) -> Tensor:
        """int64 [n], the place in `counted` of the attack that broke the sample first.

        len(counted) for a sample that none broke, or that is wrong on the clean image.
        """
        counted = self.counted
        by = torch.full_like(self.ids, len(counted))
        for place, label in reversed([*enumerate(counted)]):
            by[self.correct & ~self.stages[label]] = place
        return by

    @property
    def n(self) -> int:
        """Samples measured."""
        return len(self.ids)

    @property
    def complete(self) -> bool:
        """Whether all samples are measured. If shards are missing, no number is final."""
        return self.n == (self.total or self.n)

    @property
    def at_chance(self) -> str:
        """One sentence where clean or robust accuracy is not surely above chance; else ""."""
        if not self.n:
            return ""
        rates = Rate(int(self.correct.sum()), self.n), Rate(int(self.survivors.sum()), self.n)
        return at_chance(*rates, int(self.labels.bincount().max()) / self.n)

    @property
    def clean_acc(self) -> float:
        """Share right on clean images, in [0, 1]."""
        return int(self.correct.sum()) / max(1, self.n)

    @property
    def robust_acc(self) -> float:
        """Share of all samples that are right under every attack in the ball, in [0, 1]."""
        return int(self.survivors.sum()) / max(1, self.n)

    @property
    def attack_success(self) -> float:
        """Share of the initially correct samples that some attack in the ball broke, in [0, 1]."""
        right = int(self.correct.sum())
        return (right - int(self.survivors.sum())) / max(1, right)

    @property
    def reliability(self) -> str:
        """The level of the worst alarm: ok, suspect or invalid."""
        return reliability(self.alarms)
