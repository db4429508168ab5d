"""The distance from each sample to the nearest error that an attack finds, whatever the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.data.split import Split
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.sizing import in_batches

#: What attacks told `Oracle.found`: rows, queries so far, distances.
Trace = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Distances:
    """What minimal-norm attacks found.

    ids, labels: int64 [n]. values: label of the attack -> float64 [n], distances in pixel units of [0, 1]. 0
    = wrong on the clean image. inf = never broken.
    after: label of an attack with a budget of queries -> float64 [n, G], distances with `milestones` queries.
    """

    ids: Tensor
    labels: Tensor
    values: dict[str, Tensor]
    after: dict[str, Tensor] = field(default_factory=dict)


def milestones(call: AttackCall) -> list[int]:
    """10, 20, 50, 100 and so on up to the attack's budget of queries; [] where labels are not all it sees."""
    budget = call.given.get("queries")
    if call.needs != "decisions" or budget is None:
        return []
    series = (step * 10**power for power in range(1, 10) for step in (1, 2, 5))
    return [*takewhile(lambda count: count < budget, series), budget]


def closest_errors(
    model: nn.Module,
    plan: EvalPlan,
    split: Split,
    positions: Tensor,
    device: torch.device,
    *,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    done: Callable[[int], None] = lambda samples: None,
) -> Distances:
    """d_i = ||x_adv_i - x_i||_p of the closest misclassified point that each attack of the plan finds.

    The search runs on the model itself in fp32. The closest points lie on the decision boundary, and a folded
    or rounded copy has it elsewhere. The judge confirms each point. The radius of the ball does not limit the
    distance. Memory: one number per sample and attack, and one batch. A batch that does not fit is halved.

    Args:
        model: what is attacked.
        plan: minimal-norm attacks, untargeted; seed and batch size.
        split, positions: what to measure, int64 [n].
        device: where it is measured.
        stop: raises to interrupt.
        say: told of a batch that did not fit.
        done: told the number of samples of each finished batch.

    Raises ValueError for a targeted plan, or an attack that is not minimal-norm.
    """
    _check(plan)
    with frozen(model):
        search = _Search(model, plan, stop)
        batches = []
        for batch in in_batches(split, positions, device, plan.batch_size, search.batch, say):
            batches.append(batch)
            done(len(batch.ids))
    return Distances(
        torch.cat([batch.ids for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        {call.label: torch.cat([batch.values[call.label] for batch in batches]) for call in plan.attacks},
        {name: torch.cat([batch.after[name] for batch in batches]) for name in batches[0].after},
    )


def _check(plan: EvalPlan) -> None:
    """Raises ValueError for a targeted plan, or an attack that is not minimal-norm."""
    if plan.target is not None:
        raise ValueError(f"distances are measured untargeted, got target={plan.target!r}")
    if other := [call.label for call in plan.attacks if call.kind != "minimal"]:
        raise ValueError(f"only minimal-norm attacks give distances, not {', '.join(other)}")


class _Search:
    """The attacks of a plan on one frozen model."""

    def __init__(self, model: nn.Module, plan: EvalPlan, stop: Callable[[], None] | None) -> None:
        self._model, self._plan, self._stop = model, plan, stop
        self._judge = Judge(model, plan.ball, bounded=False)

    def batch(self, x: Tensor, y: Tensor, ids: Tensor) -> Distances:
        """The distances of one batch, on the CPU: x [B, C, H, W] in [0, 1], y and ids int64 [B]."""
        right = self._judge.clean(x, y).right.nonzero()[:, 0]
        values, after = {}, {}
        for call in self._plan.attacks:
            far, counts = torch.zeros(len(y), dtype=torch.float64), milestones(call)
            then = torch.zeros(len(y), len(counts), dtype=torch.float64)
            if len(right):
                closest, trace = self._closest(call, x[right], y[right], ids[right])
                far[right.cpu()] = closest.cpu()
                then[right.cpu()] = _by_then(trace, counts, closest.cpu())
            values[call.label] = far
            if counts:
                after[call.label] = then
        return Distances(ids.cpu(), y.cpu(), values, after)

    def _closest(self, call: AttackCall, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Trace]:
        """float64 [R]: distance of the closest confirmed error of each row; inf where there is none.

        And what the attack had found after how many queries.
        """
        plan, criterion = self._plan, self._judge.criterion(y)
        rng, draws = RowRandom(plan.seed, "start", ids), plan.search.draws or 1
        oracle = call.oracle(self._model, x, criterion, rng=rng, ball=plan.ball, stop=self._stop, draws=draws)
        ruling = self._judge.rule(x, call.fn(oracle, x, plan.ball, **call.params), criterion)
        far = torch.where(ruling.hit.to(ruling.distance.device), ruling.distance, float("inf"))
        return far, oracle.trace


def _by_then(trace: Trace, counts: Sequence[int], closest: Tensor) -> Tensor:
    """float64 [R, G]: the distance of each row after so many queries; the last is what the judge confirmed.

    An error that the judge refused in the end, for a rounding, counts at no time.
    """
    best = torch.full((len(closest), len(counts)), float("inf"), dtype=torch.float64)
    limits = torch.tensor(counts)
    for rows, spent, far in trace:
        here = torch.where(spent[:, None] <= limits, far[:, None].double(), float("inf"))
        best[rows] = torch.minimum(best[rows], here)
    best = torch.maximum(best, closest[:, None])
    if counts:
        best[:, -1] = closest
    return best
