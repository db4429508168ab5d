"""Attacks on the samples that are certified: at ascending radii, each on what the smaller ones left."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robustcli.data.split import Split
from robustcli.evaluation.answers import NONE
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.pulse import Beat
from robustcli.evaluation.result import BatchOutcome
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.records.alarm import Alarm

#: (x_adv [R, C, H, W], y int64 [R], ids int64 [R]) -> int64 [R]: the class there, or NONE where it is no
#: success after all.
Confirm = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(eq=False)
class Blows:
    """What the attacks did to n samples.

    Args:
        clean: int64 [n], the class of the clean image.
        at: float64 [n], the smallest radius at which the sample broke; inf where it never did, and where it
            is wrong on the clean image.
        found: int64 [n], the class there, or NONE.
        by: label of the attack that broke it, or None.
        tallies: counts for alarms.
    """

    clean: Tensor
    at: Tensor
    found: Tensor
    by: list[str | None]
    tallies: Counter[str] = field(default_factory=Counter)

    @classmethod
    def none(cls, n: int) -> Blows:
        """Nothing is known of n samples."""
        at = torch.full((n,), math.inf, dtype=torch.float64)
        return cls(torch.full((n,), NONE), at, torch.full((n,), NONE), [None] * n)


class Attacked:
    """The attacks of a plan on given samples, at each radius.

    A point that breaks a sample at one radius lies within all larger ones: the sample counts as broken there.

    Args:
        model: what is attacked.
        plan: attacks in the ball, untargeted; its ball is the threat.
        radii: ascending, in pixel units of [0, 1], the threat's among them.
        confirm: looks at each success again, for a classifier that is sampled; None = the judge's word.
        reset: called before each radius of each call with its first id: a model that draws by itself then
            draws the same again.
        stop, say, beat: as of `RobustEvaluation`.

    Raises ValueError for an attack that leaves the ball, and for a target: neither refutes a certificate.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: EvalPlan,
        radii: Sequence[float],
        *,
        confirm: Confirm | None = None,
        reset: Callable[[str], None] = lambda key: None,
        stop: Callable[[], None] | None = None,
        say: Callable[[str], None] = lambda text: None,
        beat: Callable[[Beat], None] | None = None,
    ) -> None:
        apart = [call.label for call in plan.attacks if not call.bounded]
        if apart or plan.target is not None:
            what = f"{', '.join(apart)} leaves the ball" if apart else f"target {plan.target} is one class"
            raise ValueError(f"a certificate is about the ball and all other classes: {what}")
        plan = replace(plan, audit=None)
        self._first = RobustEvaluation(model, plan, stop=stop, say=say, beat=beat)
        self._radii, self._confirm, self._reset = radii, confirm, reset
        self._evaluations: list[tuple[float, RobustEvaluation]] = []

    def prepare(self, split: Split, positions: Tensor, device: torch.device) -> EvalPlan:
        """The plan after a first look at the model; see `RobustEvaluation.prepare`."""
        self._reset("first look")
        plan = self._first.prepare(split, positions, device)
        balls = [replace(plan.ball, eps=radius) for radius in self._radii]
        self._evaluations = [(ball.eps, self._first.within(ball)) for ball in balls]
        return plan

    @property
    def alarms(self) -> list[Alarm]:
        """What the first look raised."""
        return self._first.alarms

    def __call__(self, split: Split, positions: Tensor, device: torch.device) -> Blows:
        """Attack the samples at these positions, int64 [n]; `prepare` comes before the first call."""
        blows, left = Blows.none(len(positions)), torch.arange(len(positions))
        for radius, evaluation in self._evaluations:
            if not len(left):
                break
            self._reset(f"{radius!r} {int(split.ids[positions[left[0]]])}")
            kept, start = [], 0
            for outcome in evaluation.batches(split, positions[left], device):
                rows = left[start : start + len(outcome.y)]
                start += len(rows)
                kept.append(self._note(blows, rows, radius, outcome))
            left = torch.cat(kept)
        return blows

    def _note(self, blows: Blows, rows: Tensor, radius: float, outcome: BatchOutcome) -> Tensor:
        """Write one batch into the blows; returns the rows that the next radius attacks, int64.

        rows: int64 [B], the places of the batch in the blows.
        """
        correct = outcome.correct.cpu()
        first = blows.clean[rows] == NONE
        blows.clean[rows[first]] = outcome.clean_predicted.cpu()[first]
        found = self._successes(outcome)
        fallen = found != NONE
        blows.at[rows[fallen]] = radius
        blows.found[rows[fallen]] = found[fallen]
        for k in fallen.nonzero()[:, 0].tolist():
            blows.by[int(rows[k])] = self._breaker(outcome, k)
        blows.tallies.update(outcome.tallies)
        return rows[correct & ~fallen]

    def _successes(self, outcome: BatchOutcome) -> Tensor:
        """int64 [B] on the CPU: the class at the point that broke the row; NONE where none did."""
        attacked = outcome.attacked
        broken = (attacked != NONE).nonzero()[:, 0]
        if self._confirm is not None and len(broken):
            attacked = attacked.clone()
            there = self._confirm(outcome.x_adv[broken], outcome.y[broken], outcome.ids[broken])
            attacked[broken] = there.to(attacked.device)
        return attacked.cpu()

    def _breaker(self, outcome: BatchOutcome, row: int) -> str:
        """The label of the attack that broke a row first."""
        calls = self._first.plan.attacks
        pairs = zip(calls, outcome.standing, strict=True)
        return next(call.label for call, standing in pairs if not bool(standing[row]))
