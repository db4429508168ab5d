"""Signs that the adaptive number must not be believed: a defence may hide what it does not prevent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.data.split import Split
from robustcli.evaluation.guarded.calls import own_calls
from robustcli.evaluation.guarded.planted import plant
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.evaluation.rules import SLOPE, too_many
from robustcli.models.guarded import GuardedModel
from robustcli.proportions import Rate
from robustcli.records.alarm import Alarm

PROBED = 16  # samples of each test
_MISSED = 0.05  # share of planted points that an honest search may miss: Zimmermann's test passes at 95 %
_HALF = (
    "robust accuracy with rejection at eps implies a classifier without at eps / 2: explain where this one"
    " comes from, or attack harder"
)
_BLIND = (
    "the search does not find what is there: attack it through a surrogate, and read the number as an upper"
    " bound"
)


@dataclass(frozen=True)
class Planting:
    """k of n planted points were found; of `tried` samples only n could get one."""

    found: int
    n: int
    tried: int


def implied(adaptive: Rate, half: Rate | None) -> list[Alarm]:
    """`implies-robust-classifier`, where the adaptive number lies above that of the bare network at eps / 2.

    Right and accepted at x, and nothing wrong and accepted within eps: then some (slow) classifier is right
    within eps / 2. Where the bare network under the same attacks at half the radius, on the same samples, is
    surely worse than that, either the defence holds a new kind of robustness or the search failed.

    half: of the bare network at eps / 2; None where it was not measured, since the number is no better than
    the bare one at eps.

    Source: Tramer, ICML 2022, arXiv:2107.11630: robust detection at eps gives robust classification at eps/2.
    """
    if half is None or adaptive.value <= half.exact[1]:
        return []
    low, high = half.exact
    evidence = (
        f"{adaptive.k} of {adaptive.n} samples stand behind the guard at eps; without it {half.k} at eps / 2"
        f" (95 % interval {low:.1%} to {high:.1%})"
    )
    return [Alarm("implies-robust-classifier", "suspect", evidence, _HALF)]


def free_pixels(
    evaluation: RobustEvaluation, split: Split, positions: Tensor, device: torch.device
) -> list[Alarm]:
    """`survives-huge-eps`, where samples stand though every pixel may take any value.

    evaluation: of the guarded model. positions: int64 [m], samples that are right and accepted.
    """
    plan = evaluation.plan
    box = Ball("linf", plan.ball.high - plan.ball.low, plan.ball.low, plan.ball.high)
    calls = [call for call in own_calls(_guard(evaluation), [], box) if call.needs == "gradient"]
    standing = _standing(_guard(evaluation), replace(plan, ball=box), calls, split, positions, device)
    n = len(positions)
    if not too_many(standing, n, 0.01):
        return []
    evidence = f"{standing} of {n} images stand though every pixel may take any value"
    return [Alarm("survives-huge-eps", "suspect", evidence, SLOPE)]


def planting(
    evaluation: RobustEvaluation,
    calls: Sequence[AttackCall],
    split: Split,
    positions: Tensor,
    device: torch.device,
) -> tuple[Planting, list[Alarm]]:
    """`planted-missed`, where the searches `calls` miss points that were planted behind the defences.

    evaluation: of the guarded model. positions: int64 [m], samples that stood in the evaluation. On those the
    planted point is the only one known, so that a search that finds another has found one as well.

    Source: Zimmermann et al., NeurIPS 2022, arXiv:2206.13991. The authors train a new readout with one
        adversarial point and nothing else in the ball; here a bump is added to the networks as they are.
    """
    x, y, ids = next(iter(split.stream([positions], device)))
    model, plan = _guard(evaluation), evaluation.plan
    planted, rows = plant(model, x, y, ids, plan.ball, seed=plan.seed, draws=plan.draws(plan.judge_draws))
    chosen = positions[rows.cpu()]
    missed = _standing(planted, plan, calls, split, chosen, device) if len(chosen) else 0
    n = len(chosen)
    result = Planting(n - missed, n, len(positions))
    if not n:
        evidence = f"none of {len(positions)} samples could get a known point behind the defences"
        return result, [Alarm("nothing-planted", "note", evidence, "the search could not be tested so")]
    if not too_many(missed, n, _MISSED):
        return result, []
    evidence = f"the search missed {missed} of {n} points that were planted behind the defences"
    return result, [Alarm("planted-missed", "suspect", evidence, _BLIND)]


def _standing(
    model: GuardedModel,
    plan: EvalPlan,
    calls: Sequence[AttackCall],
    split: Split,
    positions: Tensor,
    device: torch.device,
) -> int:
    """How many of the samples stand under these attacks; the model is not looked at first."""
    plan = replace(plan, attacks=list(calls), checks=0, escalate=False)
    evaluation = RobustEvaluation(model, plan)
    return int(evaluation.run(split, positions, device).survivors.sum())


def _guard(evaluation: RobustEvaluation) -> GuardedModel:
    """The guarded model that is measured."""
    model = evaluation.model
    assert isinstance(model, GuardedModel)
    return model
