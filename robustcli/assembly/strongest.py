"""Which attacks search on one model to fool another, where nobody named one."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.assembly.attacks import make_attacks
from robustcli.config.spec import Spec
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.transfer_members import Chain

#: The strongest that we measured between networks, see benchmarks/results/transfer.md.
STRONGEST = Spec.of("mi_fgsm", transforms=["sia"])
#: The same as --attack says it.
WRITTEN = "mi_fgsm:transforms=[sia]"
#: What runs beside it, so that no pair is below what published tables of transfer begin with.
YARDSTICK = "mi_fgsm"


def is_yardstick(call: AttackCall) -> bool:
    """Whether an attack is MI-FGSM alone, without transforms."""
    return call.name == YARDSTICK and not call.given["transforms"]


def chains(specs: Sequence[Spec], plan: EvalPlan) -> list[Chain]:
    """The attacks of a plan as its configuration lists them: the stages of an ensemble are one attack."""
    found: list[Chain] = []
    calls = list(plan.attacks)
    for k, spec in enumerate(specs):
        count = len(make_attacks([spec], plan.ball.norm, f"attacks.{k}", plan.search))
        own, calls = calls[:count], calls[count:]
        label = own[0].label
        if count > 1:
            label = spec.name
        found.append(Chain(label, own))
    return found
