"""What an evaluation does unasked: fp32 where a fast search misses hits, more stages for masked gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.evaluation.draws import EOT_DRAWS
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search

_STEPS = 50

#: The most that a short form of an attack keeps of these parameters: enough to compare two searches.
_SHORT = {"steps": 20, "restarts": 1, "targets": 2, "queries": 200, "binary_search": 2, "draws": 5}

#: (label, name, parameters): what breaks models whose gradients lead astray only inside the ball.
_BEYOND: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("apgd-wide", "apgd", {"steps": 100, "loss": "margin", "widest": 3.0}),
    ("fab-t", "fab", {"steps": 100, "targeted": True, "targets": 9}),
    ("sigma-zero", "sigma_zero", {"steps": 200}),  # of l0, which the others do not know
)


def trusted(
    plan: EvalPlan,
    model: nn.Module,
    twin_of: Callable[[Search, Tensor], Classifier],
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    say: Callable[[str], None],
) -> list[AttackCall]:
    """The attacks of a plan, moved to the plain fp32 model where a search in low precision misses hits.

    Attacks of one kind that need the same (fixed gradient, minimal gradient, scores) are a family. A short
    form of its first attack searches in low precision and in fp32, on the samples that the families before it
    left standing. Attacks that search in fp32 anyway are not compared.

    Args:
        plan: the attacks, and the precision in which they search.
        model: the original one, frozen.
        twin_of: (search, pixels [n, C, H, W]) -> the classifier that is searched on.
        x, y, ids: samples that the model classifies correctly: pixels [n, C, H, W] in [0, 1], int64 [n],
            int64 [n].
        say: told of each family that goes to fp32.
    """
    standing = torch.ones_like(y, dtype=torch.bool)
    misses: dict[tuple[str, str], str] = {}  # family -> what its low-precision search misses, "" for nothing
    for call in plan.attacks:
        family, search = (call.kind, call.needs), call.searching(plan.search)
        low_precision = call.bounded and search.dtype is not torch.float32
        if family in misses or not low_precision or plan.ball.eps == 0 or not bool(standing.any()):
            continue
        rows = standing.nonzero()[:, 0]
        low, exact = twin_of(search, x), twin_of(replace(search, dtype=torch.float32), x)
        if low is model:
            misses[family] = ""
            continue
        misses[family], fell = gap(low, exact, model, x[rows], y[rows], ids[rows], call, plan)
        standing[rows[fell]] = False
        if misses[family]:
            say(f"{call.kind} attacks search on the plain fp32 model: {misses[family]}")

    def precise(call: AttackCall) -> AttackCall:
        if misses.get((call.kind, call.needs)):
            return replace(call, search=call.searching(plan.search).exact())
        return call

    return [precise(call) for call in plan.attacks]


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
    """(what a search on `low` misses, in words, "" for nothing; bool [n], who fell to either search).

    A short form of the attack searches on `low` and on `exact`. The model judges in fp32. Borderline samples
    fall to one search by chance, on either side. A gap is 2 samples more missed than won.
    """
    judge = Judge(model, plan.ball)
    criterion = judge.criterion(y)
    given = call.given
    short = {name: min(most, given[name]) for name, most in _SHORT.items() if name in given}

    def hits_on(searched: Classifier) -> Tensor:
        oracle = call.oracle(searched, x, criterion, rng=RowRandom(plan.seed, "gap", ids), ball=plan.ball)
        return judge.rule(x, call.points(oracle, x, plan.ball, **short), criterion).hit

    low_hits, exact_hits = hits_on(low), hits_on(exact)
    fell = low_hits | exact_hits
    missed, won = int((exact_hits & ~low_hits).sum()), int((low_hits & ~exact_hits).sum())
    if missed - won < 2:
        return "", fell
    precision = str(call.searching(plan.search).dtype).removeprefix("torch.")
    hits = int(exact_hits.sum())
    return f"{call.label} in {precision} missed {missed} of {hits} hits on {len(x)} samples", fell


def escalations(names: Sequence[str], plan: EvalPlan) -> list[AttackCall]:
    """Extra stages that the diagnosis asks for.

    Args:
        names: rescale (logits brought to another scale), bpda (straight-through gradients), eot (gradients
            averaged over draws), minimal (a search in a wide ball and a minimal-norm search), square (no
            gradients). Other names add nothing.
        plan: for minimal and square, an attack that it has already is not added again.
    """
    exact = replace(plan.search, dtype=torch.float32, compile=False, length=None)
    rescale, bpda = "rescale" in names or plan.search.rescale, "bpda" in names
    calls: list[AttackCall] = []
    climb = partial(_climb, plan.ball.norm)
    if rescale:
        calls.append(climb("rescaled", replace(exact, rescale=True)))
    if bpda:
        calls.append(climb("bpda", replace(exact, bpda=True, rescale=rescale)))
    if "eot" in names:
        calls.append(climb("eot", replace(exact, rescale=rescale, bpda=bpda, draws=EOT_DRAWS)))
    if "minimal" in names:
        missing = (stage for stage in _BEYOND if not _has(plan, *stage[1:]))
        calls += [_escalated(label, name, params) for label, name, params in missing]
    if "square" in names and not _has(plan, "square", {}):
        calls.append(_escalated("square", "square", {"queries": 1000}))
    return [call for call in calls if plan.ball.norm in registry.attacks.get(call.name).facts.norms]


def _has(plan: EvalPlan, name: str, params: Mapping[str, object]) -> bool:
    """Whether the plan holds an attack of this name with these parameters, running at least half as long."""
    same = [call.given for call in plan.attacks if call.name == name]
    return any(all(_enough(given.get(key), value) for key, value in params.items()) for given in same)


def _enough(given: Any, wanted: Any) -> bool:
    """Whether a parameter has the wanted value, or is a whole number of at least half of it."""
    if given == wanted:
        return True
    counts = isinstance(wanted, int) and not isinstance(wanted, bool) and isinstance(given, int)
    return counts and 2 * given >= wanted


def _escalated(label: str, name: str, params: Mapping[str, object]) -> AttackCall:
    return AttackCall.of(registry.attacks.get(name), params, label=f"escalated:{label}")


def _climb(norm: str, prefix: str, search: Search) -> AttackCall:
    """APGD on cross-entropy, or PGD under a norm that APGD does not know."""
    entry = registry.attacks.get("apgd")
    if norm not in entry.facts.norms:
        entry = registry.attacks.get("pgd")
    params = {"steps": _STEPS, "loss": "ce"}
    return AttackCall.of(entry, params, label=f"{prefix}:{entry.name}-ce", search=search)
