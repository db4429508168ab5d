"""Which attacks search on one model to fool another, where nobody named one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robustcli import registry
from robustcli.assembly.attacks import make_attacks
from robustcli.config.spec import Spec
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.transfer_members import Chain

#: What published tables of transfer begin with.
YARDSTICK = "mi_fgsm"
#: As --attack says it -> the attack. Published tables of large networks have MI-FGSM with SIA at the top, and
#: robust targets fell to it more often here. Between small natural networks APGD broke most.
#: See benchmarks/results/transfer.md.
STRONGEST = {
    "mi_fgsm:transforms=[sia]": Spec.of(YARDSTICK, transforms=["sia"]),
    YARDSTICK: Spec.of(YARDSTICK),
    "apgd:steps=50": Spec.of("apgd", steps=50),
}


def strongest(norms: Iterable[str]) -> dict[str, Spec]:
    """Those of `STRONGEST` that know all these norms."""

    def knows(spec: Spec) -> bool:
        return set(norms) <= set(registry.attacks.get(spec.name).facts.norms)

    return {written: spec for written, spec in STRONGEST.items() if knows(spec)}


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
