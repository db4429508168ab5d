"""How far each sample is from the nearest error that an attack finds, whatever the radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.data.split import Split
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan


@dataclass(frozen=True)
class Distances:
    """ids, labels: int64 [n]. values: label of the attack -> float64 [n], pixel units; 0 = wrong from the start, inf = never broken."""

    ids: Tensor
    labels: Tensor
    values: dict[str, Tensor]


def closest_errors(
    model: nn.Module,
    plan: EvalPlan,
    split: Split,
    positions: Tensor,
    device: torch.device,
    *,
    stop: Callable[[], None] | None = None,
    done: Callable[[int], None] = lambda samples: None,
) -> Distances:
    """d_i = ||x_adv_i - x_i||_p of the closest misclassified point that each minimal-norm attack of the plan finds.

    Searched on the model itself in fp32 (a folded or rounded copy has its boundary elsewhere, and the closest points lie on it) and
    confirmed by the judge; the radius of the plan's ball bounds nothing here. Untargeted. Memory: one number per sample and attack.

    Raises ValueError for a targeted plan, or an attack that is not minimal-norm.
    """
    if plan.target is not None:
        raise ValueError(f"distances are measured untargeted, got target={plan.target!r}")
    if other := [call.label for call in plan.attacks if call.kind != "minimal"]:
        raise ValueError(f"only minimal-norm attacks give distances, not {', '.join(other)}")
    ids_seen, labels, values = [], [], {call.label: list[Tensor]() for call in plan.attacks}
    with frozen(model):
        judge = Judge(model, plan.ball, bounded=False)
        for x, y, ids in split.stream(list(positions.split(plan.batch_size or 256)), device):
            clean = judge.logits(x)
            right = ((clean.argmax(1) == y) & torch.isfinite(clean).all(1)).nonzero()[:, 0]
            for call in plan.attacks:
                found = torch.zeros(len(y), dtype=torch.float64)
                if len(right):
                    found[right.cpu()] = _closest(model, judge, call, plan, x[right], y[right], ids[right], stop).cpu()
                values[call.label].append(found)
            ids_seen.append(ids.cpu())
            labels.append(y.cpu())
            done(len(y))
    return Distances(torch.cat(ids_seen), torch.cat(labels), {label: torch.cat(parts) for label, parts in values.items()})


def _closest(model: nn.Module, judge: Judge, call: AttackCall, plan: EvalPlan, x: Tensor, y: Tensor, ids: Tensor, stop: Callable[[], None] | None) -> Tensor:
    """float64 [R]: distance of the closest confirmed error, or inf."""
    criterion, rng = Criterion(y), RowRandom(plan.seed, "start", ids)
    oracle = Oracle(model, x, criterion, rng=rng, keep="closest", ball=plan.ball, stop=stop, draws=plan.search.draws or 1)
    ruling = judge.rule(x, call.fn(oracle, x, plan.ball, **call.params), criterion)
    return torch.where(ruling.hit.to(ruling.distance.device), ruling.distance, float("inf"))
