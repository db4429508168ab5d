"""The same attack by us and by torchattacks, both under our judge: do they break the same samples?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.config.bind import TORCHATTACKS
from robustcli.core.geometry import Ball
from robustcli.data.split import Split
from robustcli.evaluation.library import torchattacks_call
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.proportions import mcnemar
from robustcli.records.alarm import Alarm

_LEVEL = 0.01  # of the two-sided test


@dataclass(frozen=True)
class _Peer:
    """Class of torchattacks for each norm, and our parameters in its words."""

    classes: Mapping[str, str]
    words: Mapping[str, str] = field(default_factory=dict)


_STEPS = {"steps": "steps", "step_size": "alpha"}
_PEERS = {
    "fgsm": _Peer({"linf": "FGSM"}),
    "pgd": _Peer({"linf": "PGD", "l2": "PGDL2"}, _STEPS | {"start": "random_start"}),
    "mi_fgsm": _Peer({"linf": "MIFGSM"}, _STEPS | {"decay": "decay"}),
    "deepfool": _Peer({"l2": "DeepFool"}, {"steps": "steps", "overshoot": "overshoot"}),
    "cw": _Peer({"l2": "CW"}, {"steps": "steps", "step_size": "lr", "confidence": "kappa"}),
    "apgd": _Peer(
        {"linf": "APGD", "l2": "APGD"},
        {"steps": "steps", "restarts": "n_restarts", "loss": "loss", "rho": "rho"},
    ),
    "fab": _Peer(
        {"linf": "FAB", "l2": "FAB"},
        {
            "steps": "steps",
            "restarts": "n_restarts",
            "targeted": "multi_targeted",
            "alpha_max": "alpha_max",
            "eta": "eta",
            "beta": "beta",
        },
    ),
    "square": _Peer(
        {"linf": "Square", "l2": "Square"},
        {
            "queries": "n_queries",
            "p": "p_init",
            "restarts": "n_restarts",
            "loss": "loss",
            "rescale": "resc_schedule",
        },
    ),
}


def peer_of(call: AttackCall, ball: Ball) -> tuple[AttackCall | None, str]:
    """torchattacks' attack with the same radius, steps and step size, and what it cannot be told; (None, why) when it has no such attack.

    Raises ResourceError E-EXTRA when torchattacks is not installed.
    """
    if call.name.startswith(TORCHATTACKS):
        return None, "it is torchattacks' own"
    peer = _PEERS.get(call.name)
    if peer is None or ball.norm not in peer.classes:
        return None, f"torchattacks has no {call.name} under {ball.norm}"
    given = call.given
    name, words = peer.classes[ball.norm], dict(peer.words)
    if given.get("loss") == "dlr-targeted":
        name = "APGDT"
        del words["loss"]
    params = {theirs: _value(call.name, key, given, ball) for key, theirs in words.items() if key in given}
    untold = [key for key in call.params if key not in peer.words]
    found = torchattacks_call(TORCHATTACKS + name, params, ball.norm)
    return replace(found, search=call.search), f"it knows no {', '.join(untold)}" if untold else ""


def _value(name: str, key: str, given: Mapping[str, Any], ball: Ball) -> Any:
    """Our parameter as torchattacks wants it; a step size of None is worked out as the attack does."""
    if key == "start":
        return given[key] != "zero"
    if key == "step_size" and given[key] is None:
        return ball.eps / given["steps"] if name == "mi_fgsm" else ball.check_step(given["steps"], None)
    return given[key]


def cross_check(
    model: nn.Module,
    plan: EvalPlan,
    split: Split,
    positions: Tensor,
    device: torch.device,
    *,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[dict[str, Any]], list[Alarm]]:
    """Each attack of the plan alone, ours and torchattacks', on all initially correct samples: (one row per attack, alarms).

    A row counts the samples that each left standing, those that only one of them broke, and `p` of `mcnemar`; `verdict` is agree, ours
    weaker, ours stronger (both: p < 0.01) or not compared. Only a weaker attack of ours makes a robust accuracy doubtful, hence an alarm.

    Raises:
        ResourceError E-EXTRA: torchattacks is not installed.
    """

    def standing(call: AttackCall) -> tuple[Tensor, Tensor, float]:
        alone = replace(plan, attacks=[call], checks=0, escalate=False, audit=None)
        result = RobustEvaluation(model, alone, stop=stop, say=say).run(split, positions, device)
        return result.correct, result.stages[call.label], result.passes_per_sample[call.label]

    rows: list[dict[str, Any]] = []
    alarms: list[Alarm] = []
    for call in (call for call in plan.attacks if call.bounded):
        peer, note = peer_of(call, plan.ball)
        if peer is None:
            rows.append({"attack": call.label, "peer": None, "verdict": "not compared", "note": note})
            continue
        (correct, ours, passes), (_, theirs, peer_passes) = standing(call), standing(peer)
        only_ours, only_peer = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
        p = mcnemar(only_ours, only_peer)
        verdict = "agree" if p >= _LEVEL else "ours weaker" if only_peer > only_ours else "ours stronger"
        rows.append(
            {
                "attack": call.label, "peer": peer.label, "n": int(correct.sum()), "standing": int(ours.sum()), "peer_standing": int(theirs.sum()),
                "only_ours": only_ours, "only_peer": only_peer, "p": p, "verdict": verdict, "passes_per_sample": passes,
                "peer_passes_per_sample": peer_passes, "note": note,
            }
        )  # fmt: skip
        if verdict == "ours weaker":
            counts = f"{peer.label} broke {only_peer} of {int(correct.sum())} samples that {call.label} left standing, the reverse {only_ours} (p = {p:.2g})"
            alarms.append(
                Alarm(
                    "cross-check",
                    "suspect",
                    f"ours is weaker: {counts}",
                    "give ours more steps or restarts; if it stays, report it",
                )
            )
    return rows, alarms
