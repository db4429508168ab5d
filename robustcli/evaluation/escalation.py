"""What an evaluation does by itself: look at the model first, compare the fast search with fp32, add stages where gradients are masked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.losses import Criterion
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search

EOT_DRAWS = 20  # AutoAttack's version "rand"
JUDGE_DRAWS = 25  # odd: a majority always exists
_STEPS = 50


#: What a short form of an attack keeps of its parameters: enough to see whether two searches find the same.
_SHORT = {"steps": 20, "restarts": 1, "targets": 2, "queries": 200, "binary_search": 2, "draws": 5}


def trusted(
    plan: EvalPlan,
    model: nn.Module,
    twin_of: Callable[[Search, Tensor], Classifier],
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    say: Callable[[str], None],
) -> list[AttackCall]:
    """The attacks of a plan, where a family's low-precision search misses hits that fp32 finds: on the plain fp32 model.

    A family is a kind and what it needs (fixed gradient, minimal gradient, scores); its first attack stands for it, in a short form,
    on the samples that the families before left standing. Attacks that bear no low precision are not asked.
    """
    calls, standing, families = (
        list(plan.attacks),
        torch.ones_like(y, dtype=torch.bool),
        dict[tuple[str, str], str](),
    )
    for call in calls:
        family, search = (call.kind, call.needs), call.searching(plan.search)
        if (
            family in families
            or not call.bounded
            or search.dtype is torch.float32
            or plan.ball.eps == 0
            or not bool(standing.any())
        ):
            continue
        rows = standing.nonzero()[:, 0]
        low, exact = twin_of(search, x), twin_of(replace(search, dtype=torch.float32), x)
        families[family], fell = (
            ("", standing.new_zeros(len(rows)))
            if low is model
            else gap(low, exact, model, x[rows], y[rows], ids[rows], call, plan)
        )
        standing[rows[fell]] = False
        if families[family]:
            say(f"{call.kind} attacks search on the plain fp32 model: {families[family]}")
    moved = {family for family, why in families.items() if why}
    return [
        replace(call, search=call.searching(plan.search).exact())
        if (call.kind, call.needs) in moved
        else call
        for call in calls
    ]


def gap(
    low: Classifier,
    exact: Classifier,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    call: AttackCall,
    plan: EvalPlan,
) -> tuple[str, Tensor]:
    """(why `low` must not be searched on, or ""; bool [n], who fell to either): its short attack misses hits, judged in fp32, that it finds on `exact`.

    Borderline samples flip both ways; two more missed than won, of at most 64, is no chance.
    """
    judge, criterion = Judge(model, plan.ball), Criterion(y)
    given = call.given
    short = {name: min(most, given[name]) for name, most in _SHORT.items() if name in given}
    hits = []
    for searched in (low, exact):
        rng = RowRandom(plan.seed, "gap", ids)
        oracle = call.oracle(searched, x, criterion, rng=rng, ball=plan.ball)
        hits.append(judge.rule(x, call.points(oracle, x, plan.ball, **short), criterion).hit)
    missed, won = int((hits[1] & ~hits[0]).sum()), int((hits[0] & ~hits[1]).sum())
    why = f"{call.label} in {str(call.searching(plan.search).dtype)[6:]} missed {missed} of {int(hits[1].sum())} hits on {len(x)} samples"
    return why if missed - won >= 2 else "", hits[0] | hits[1]


def escalations(names: Sequence[str], plan: EvalPlan) -> list[AttackCall]:
    """Extra stages for what the diagnosis asks for: rescaled logits, straight-through gradients, EOT, a wide or minimal-norm search, a black box."""
    exact = replace(plan.search, dtype=torch.float32, compile=False)
    rescale, bpda = "rescale" in names or plan.search.rescale, "bpda" in names
    calls: list[AttackCall] = []
    if rescale:
        calls.append(_apgd("rescaled", replace(exact, rescale=True)))
    if bpda:
        calls.append(_apgd("bpda", replace(exact, bpda=True, rescale=rescale)))
    if "eot" in names:
        calls.append(_apgd("eot", replace(exact, rescale=rescale, bpda=bpda, draws=EOT_DRAWS)))
    if "minimal" in names:
        calls += [
            AttackCall.of(registry.attacks.get(name), params, label=f"escalated:{label}")
            for label, name, params in _BEYOND
            if not _has(plan, name, params)
        ]
    if "square" in names and not _has(plan, "square", {}):
        calls.append(
            AttackCall.of(registry.attacks.get("square"), {"queries": 1000}, label="escalated:square")
        )
    return calls


#: What breaks models whose gradients lead astray inside the ball only.
_BEYOND: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("apgd-wide", "apgd", {"steps": 100, "loss": "margin", "widest": 3.0}),
    ("fab-t", "fab", {"steps": 100, "targeted": True, "targets": 9}),
)


def _has(plan: EvalPlan, name: str, params: Mapping[str, object]) -> bool:
    """Whether the plan holds an attack of this name that does what these parameters do, at least half as long."""
    same = [call.given for call in plan.attacks if call.name == name]
    return any(all(_enough(given.get(key), value) for key, value in params.items()) for given in same)


def _enough(given: Any, wanted: Any) -> bool:
    return bool(
        given == wanted
        or (
            isinstance(wanted, int)
            and not isinstance(wanted, bool)
            and isinstance(given, int)
            and 2 * given >= wanted
        )
    )


def _apgd(prefix: str, search: Search) -> AttackCall:
    return AttackCall.of(
        registry.attacks.get("apgd"),
        {"steps": _STEPS, "loss": "ce"},
        label=f"{prefix}:apgd-ce",
        search=search,
    )
