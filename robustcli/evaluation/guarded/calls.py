"""The attacks that know the defences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.evaluation.guarded.bank import Bank, matching
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.models.guarded import GuardedModel

_QUERIES, _STEPS = 500, 50  # of Square and APGD, where the configuration asks for none
REPLAY = "transfer"  # label of the search that begins at the oblivious points


def own_calls(model: GuardedModel, attacks: Sequence[AttackCall], ball: Ball) -> list[AttackCall]:
    """What is run beside the configured attacks: APGD on the margin, those for guarded models, and Square.

    An attack that the configuration has already is not added again. A model that never rejects needs none
    that sees the rejection apart.
    """
    known = {call.name for call in attacks}
    entries = [entry for entry in registry.attacks if entry.facts.guarded and model.detectors]
    apgd = AttackCall.of(
        registry.attacks.get("apgd"), {"steps": _STEPS, "loss": "margin"}, label="apgd-margin"
    )
    calls = [apgd, *(AttackCall.of(entry, {}) for entry in entries)]
    square = AttackCall.of(registry.attacks.get("square"), {"queries": _QUERIES}, label="square")
    calls = [call for call in [*calls, square] if call.name not in known]
    return [call for call in calls if ball.norm in registry.attacks.get(call.name).facts.norms]


def adaptive_calls(
    model: GuardedModel, attacks: Sequence[AttackCall], ball: Ball, replay: AttackCall, match: AttackCall
) -> list[AttackCall]:
    """All attacks of the adaptive part, in order: the replay breaks most at once, Square costs most."""
    own = own_calls(model, attacks, ball)
    return [replay, *attacks, match, *own]


def adaptive_labels_and_passes(model: GuardedModel, plan: EvalPlan, classes: int) -> tuple[list[str], int]:
    """Labels of the attacks of the adaptive part, and their passes on a sample that stands."""
    none = torch.zeros(0)
    replay, match = replay_call(none, none), match_call(Bank(none, none, none))
    calls = adaptive_calls(model, plan.attacks, plan.ball, replay, match)
    return [call.label for call in calls], sum(call.passes(classes, plan.ball.norm) for call in calls)


def match_call(bank: Bank) -> AttackCall:
    """Logit matching to the images of a bank."""

    def passes(given: Any, classes: int, norm: str) -> int:  # noqa: ARG001
        return int(min(given["targets"], classes - 1) * (2 * given["steps"] + 1))

    return AttackCall("matching", "matching", matching(bank), {}, cost=passes)


def replay_call(ids: Tensor, points: Tensor) -> AttackCall:
    """The oblivious points, and a search that begins at them.

    ids: int64 [n], sorted. points: pixels [n, C, H, W], of these samples.
    """

    def passes(given: Any, classes: int, norm: str) -> int:  # noqa: ARG001
        return int(2 * given["steps"] + 2)

    return AttackCall(REPLAY, REPLAY, replayed(ids, points), {}, cost=passes)


def replayed(ids: Tensor, points: Tensor) -> Callable[..., Tensor]:
    """x_0 = the stored point,  x_{k+1} = P(x_k + a * steepest(grad_x loss_k)),  a = 2.5 * radius / steps.

    An attack that finds no more than a point that was there before may not stand below it. Rows are found by
    their sample ids.
    """

    def replay(oracle: Oracle, x: Tensor, ball: Ball, *, steps: int = 20) -> Tensor:
        places = torch.searchsorted(ids, oracle.rng.ids.cpu())
        x_adv = ball.project(x, points[places].to(x))
        oracle.score(x_adv)
        x, x_adv = oracle.compact(x, x_adv)
        a = ball.check_step(steps, None)
        for _ in range(steps):
            x_adv = ball.project(x, x_adv + a * ball.steepest(oracle.gradient(x_adv).grad, x_adv))
            x, x_adv = oracle.compact(x, x_adv)
        return oracle.result(x_adv)

    return replay
