"""A batch before its attacks, and what one attack leaves of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.core.losses import Criterion
from robustcli.core.random import RowRandom
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import EvalPlan


@dataclass(frozen=True)
class Batch:
    """B rows before any attack.

    Args:
        x, y, ids: clean pixels [B, C, H, W] in [0, 1], labels and sample ids int64 [B].
        logits: [B, K], the judge's for x.
        correct: bool [B], right on x.
        predicted: int64 [B], the model's label for x.
        goal: int64 [B], the label to which a targeted attack leads each row; None when untargeted.
        aim: what a success against the model is, for all B rows.
        sure: whether the model says how sure it is; False where labels are all that it answers.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    logits: Tensor
    correct: Tensor
    predicted: Tensor
    goal: Tensor | None
    aim: Criterion
    sure: bool = True

    @classmethod
    def judged(cls, judge: Judge, plan: EvalPlan, x: Tensor, y: Tensor, ids: Tensor) -> Batch:
        """The batch with the judge's clean logits and verdicts, and the goals of the plan.

        Raises:
            ValueError: as `goals`.
        """
        logits, correct, predicted = judge.clean(x, y)
        goal = goals(plan, judge.classes(logits), y, ids)
        return cls(x, y, ids, logits, correct, predicted, goal, judge.criterion(y, goal), judge.sees_scores)

    @property
    def confidence(self) -> Tensor:
        """float32 [B]: the softmax probability of `predicted`; NaN where the logits are not finite.

        0 of a model that answers with labels alone: one-hot rows say nothing of how sure it is. Of
        a guarded model a class is compared with the other classes, and "reject" with all of them.
        """
        logits = self.logits
        if self.aim.reject is not None:
            named = self.predicted < self.aim.reject
            logits = logits.clone()
            logits[named, self.aim.reject] = -torch.inf
        chosen = logits.softmax(1).gather(1, self.predicted[:, None])[:, 0] * self.sure
        return chosen.where(torch.isfinite(self.logits).all(1), torch.nan)

    def open_rows(self, eligible: Tensor) -> Tensor:
        """Places int64 [R] of the rows to attack: `eligible`, bool [B], and y is not their goal already."""
        if self.goal is not None:
            eligible = eligible & (self.goal != self.y)
        return eligible.nonzero()[:, 0]

    def criterion(self, rows: Tensor) -> Criterion:
        """What a success is for R rows; rows: their places, int64 [R]."""
        return self.aim.rows(rows)


@dataclass(frozen=True)
class Stage:
    """One attack on a batch of B rows.

    Args:
        standing: bool [B], the eligible rows that it did not break.
        rows: int64 [R], places of the rows that it ran on.
        x_adv, predicted: the points that it found for them, [R, C, H, W], and the labels there, int64 [R].
        passes: model passes spent.
        tallies: name -> count, from which alarms are made.
    """

    standing: Tensor
    rows: Tensor
    x_adv: Tensor
    predicted: Tensor
    passes: int = 0
    tallies: dict[str, int] = field(default_factory=dict)

    def news(self, survivors: Tensor, bounded: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, x_adv, predicted) of the rows that this attack says something new of.

        All that it ran on; of an unbounded one, which runs on broken rows too, those that it broke first.

        survivors: bool [B], before the attack.
        """
        if bounded:
            return self.rows, self.x_adv, self.predicted
        first = (survivors & ~self.standing)[self.rows]
        return self.rows[first], self.x_adv[first], self.predicted[first]


def goals(plan: EvalPlan, logits: Tensor, y: Tensor, ids: Tensor) -> Tensor | None:
    """The label to which a targeted attack leads each row, int64 [B]; None for an untargeted plan.

    "random" is uniform over the wrong classes, drawn from the sample id. "least-likely" is the wrong class of
    the smallest logit. A class number is the goal of all rows, also of those with that label.

    Args:
        plan: its target and seed.
        logits: [B, K], at the clean images.
        y, ids: labels and sample ids int64 [B].

    Raises:
        ValueError: another word, or a number that is no class.
    """
    target, classes = plan.target, logits.shape[1]
    if target is None:
        return None
    if target == "least-likely":
        return logits.scatter(1, y[:, None], float("inf")).argmin(1)
    if target == "random":
        return (y + RowRandom(plan.seed, "target", ids).integers(1, classes)) % classes
    if not isinstance(target, int) or not 0 <= target < classes:
        choices = f"random, least-likely or a class in 0..{classes - 1}"
        raise ValueError(f"target must be {choices}, got {target!r}")
    return torch.full_like(y, target)
