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
from robustcli.evaluation.sizing import in_batches


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
    say: Callable[[str], None] = lambda text: None,
    done: Callable[[int], None] = lambda samples: None,
) -> Distances:
    """d_i = ||x_adv_i - x_i||_p of the closest misclassified point that each minimal-norm attack of the plan finds.

    Searched on the model itself in fp32 (a folded or rounded copy has its boundary elsewhere, and the closest points lie on it) and
    confirmed by the judge; the radius of the plan's ball bounds nothing here. Untargeted. Memory: one number per sample and attack, and one
    batch, halved (which `say` tells) where that does not fit.

    Raises ValueError for a targeted plan, or an attack that is not minimal-norm.
    """
    if plan.target is not None:
        raise ValueError(f"distances are measured untargeted, got target={plan.target!r}")
    if other := [call.label for call in plan.attacks if call.kind != "minimal"]:
        raise ValueError(f"only minimal-norm attacks give distances, not {', '.join(other)}")
    ids_seen, labels, values = [], [], {call.label: list[Tensor]() for call in plan.attacks}
    with frozen(model):
        judge = Judge(model, plan.ball, bounded=False)

        def work(x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
            clean = judge.logits(x)
            right = ((clean.argmax(1) == y) & torch.isfinite(clean).all(1)).nonzero()[:, 0]
            far = [torch.zeros(len(y), dtype=torch.float64) for _ in plan.attacks]
            for call, found in zip(plan.attacks, far, strict=True):
                if len(right):
                    found[right.cpu()] = _closest(
                        model, judge, call, plan, x[right], y[right], ids[right], stop
                    ).cpu()
            return ids.cpu(), y.cpu(), far

        for ids, y, far in in_batches(split, positions, device, plan.batch_size, work, say):
            for call, found in zip(plan.attacks, far, strict=True):
                values[call.label].append(found)
            ids_seen.append(ids)
            labels.append(y)
            done(len(y))
    return Distances(
        torch.cat(ids_seen), torch.cat(labels), {label: torch.cat(parts) for label, parts in values.items()}
    )


def _closest(
    model: nn.Module,
    judge: Judge,
    call: AttackCall,
    plan: EvalPlan,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    stop: Callable[[], None] | None,
) -> Tensor:
    """float64 [R]: distance of the closest confirmed error, or inf."""
    criterion, rng = Criterion(y), RowRandom(plan.seed, "start", ids)
    oracle = Oracle(
        model, x, criterion, rng=rng, keep="closest", ball=plan.ball, stop=stop, draws=plan.search.draws or 1
    )
    ruling = judge.rule(x, call.fn(oracle, x, plan.ball, **call.params), criterion)
    return torch.where(ruling.hit.to(ruling.distance.device), ruling.distance, float("inf"))
