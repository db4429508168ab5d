"""What an evaluation does by itself: look at the model first, compare the fast search with fp32, add stages where gradients are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.types import Classifier

EOT_DRAWS = 20  # AutoAttack's version "rand"
JUDGE_DRAWS = 25  # odd: a majority always exists
_STEPS = 50


def gap(twin: Classifier, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, plan: EvalPlan) -> str:
    """Why the twin must not be searched on, or "": PGD-10 on it misses hits (judged in fp32) that PGD-10 on the model finds.

    Borderline samples flip both ways; two more missed than won, of at most 64, is no chance.
    """
    if twin is model or plan.search.plain or plan.ball.eps == 0:
        return ""
    pgd = registry.attacks.discover().get("pgd").fn
    judge, criterion = Judge(model, plan.ball), Criterion(y)
    hits = []
    for searched in (twin, model):
        oracle = Oracle(searched, x, criterion, rng=RowRandom(plan.seed, "gap", ids), keep="best")
        hits.append(judge.rule(x, pgd(oracle, x, plan.ball, steps=10), criterion).hit)
    missed, won = int((hits[1] & ~hits[0]).sum()), int((hits[0] & ~hits[1]).sum())
    return f"the {str(plan.search.dtype)[6:]} search missed {missed} of {int(hits[1].sum())} hits on {len(x)} samples" if missed - won >= 2 else ""


def escalations(names: Sequence[str], plan: EvalPlan) -> list[AttackCall]:
    """Extra stages for what the diagnosis asks for: rescaled logits, straight-through gradients, EOT, a black box."""
    exact = replace(plan.search, dtype=torch.float32, compile=False)
    rescale, bpda = "rescale" in names or plan.search.rescale, "bpda" in names
    calls: list[AttackCall] = []
    if rescale:
        calls.append(_apgd("rescaled", replace(exact, rescale=True)))
    if bpda:
        calls.append(_apgd("bpda", replace(exact, bpda=True, rescale=rescale)))
    if "eot" in names:
        calls.append(_apgd("eot", replace(exact, rescale=rescale, bpda=bpda, draws=EOT_DRAWS)))
    if "square" in names and not any(call.name == "square" for call in plan.attacks) and plan.ball.norm != "l1":
        calls.append(_call("escalated:square", "square", {"queries": 1000}, None))
    return calls


def _apgd(prefix: str, search: Search) -> AttackCall:
    return _call(f"{prefix}:apgd-ce", "apgd", {"steps": _STEPS, "loss": "ce"}, search)


def _call(label: str, name: str, params: dict[str, object], search: Search | None) -> AttackCall:
    entry = registry.attacks.discover().get(name)
    return AttackCall(label, name, entry.fn, params, entry.facts["kind"], entry.facts["needs"], search)
