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
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.proportions import mcnemar
from robustcli.records.alarm import Alarm

_LEVEL = 0.01  # of the two-sided test


@dataclass(frozen=True)
class _Peer:
    """The counterpart of one of our attacks in torchattacks.

    classes: norm -> name of the class. words: name of our parameter -> its name there.
    """

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
    """(the counterpart in torchattacks, a note); (None, why) where there is none.

    The counterpart has the same radius, steps and step size. The note names our parameters that it does not
    have.

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
    counterpart = replace(torchattacks_call(TORCHATTACKS + name, params, ball.norm), search=call.search)
    if untold:
        return counterpart, f"it knows no {', '.join(untold)}"
    return counterpart, ""


def _value(name: str, key: str, given: Mapping[str, Any], ball: Ball) -> Any:
    """Our parameter as torchattacks wants it. A step size of None becomes the one that our attack takes."""
    if key == "start":
        return given[key] != "zero"
    if key != "step_size" or given[key] is not None:
        return given[key]
    if name == "mi_fgsm":
        return ball.eps / given["steps"]
    return ball.check_step(given["steps"], None)


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
    """(rows, alarms): each attack of the plan alone, ours and torchattacks', on the same samples.

    There is one row per attack in the ball. It counts the samples that each attack left standing, and those
    that only one of them broke. `p` is the p-value of `mcnemar`. `verdict` is "agree" (p >= 0.01), "ours
    weaker", "ours stronger" or "not compared". A weaker attack of ours makes a robust accuracy doubtful: it
    raises an alarm.

    Args:
        model: what is attacked.
        plan: the attacks and their ball.
        split, positions: the samples to measure, int64 [n].
        device: where they are measured.
        stop, say: as for `RobustEvaluation`.

    Raises:
        ResourceError E-EXTRA: torchattacks is not installed.
    """

    def alone(call: AttackCall) -> Evaluation:
        own = replace(plan, attacks=[call], checks=0, escalate=False, audit=None)
        return RobustEvaluation(model, own, stop=stop, say=say).run(split, positions, device)

    rows: list[dict[str, Any]] = []
    alarms: list[Alarm] = []
    for call in plan.attacks:
        if not call.bounded:
            continue
        peer, note = peer_of(call, plan.ball)
        if peer is None:
            rows.append({"attack": call.label, "peer": None, "verdict": "not compared", "note": note})
            continue
        row = _compared(alone(call), alone(peer), note)
        rows.append(row)
        if row["verdict"] == "ours weaker":
            alarms.append(_weaker(row))
    return rows, alarms


def _compared(ours: Evaluation, theirs: Evaluation, note: str) -> dict[str, Any]:
    """One row from two evaluations of one attack each, on the same samples."""
    (call,), (peer,) = ours.calls, theirs.calls
    our_standing, their_standing = ours.stages[call.label], theirs.stages[peer.label]
    only_ours = int((their_standing & ~our_standing).sum())
    only_peer = int((our_standing & ~their_standing).sum())
    p = mcnemar(only_ours, only_peer)
    return {
        "attack": call.label,
        "peer": peer.label,
        "n": int(ours.correct.sum()),
        "standing": int(our_standing.sum()),
        "peer_standing": int(their_standing.sum()),
        "only_ours": only_ours,
        "only_peer": only_peer,
        "p": p,
        "verdict": _verdict(only_ours, only_peer, p),
        "passes_per_sample": ours.passes_per_sample[call.label],
        "peer_passes_per_sample": theirs.passes_per_sample[peer.label],
        "note": note,
    }


def _verdict(only_ours: int, only_peer: int, p: float) -> str:
    """agree, ours weaker or ours stronger, from the samples that only one side broke."""
    if p >= _LEVEL:
        return "agree"
    if only_peer > only_ours:
        return "ours weaker"
    return "ours stronger"


def _weaker(row: Mapping[str, Any]) -> Alarm:
    """The alarm for a row in which our attack is weaker."""
    evidence = (
        f"ours is weaker: {row['peer']} broke {row['only_peer']} of {row['n']} samples that {row['attack']} "
        f"left standing, the reverse {row['only_ours']} (p = {row['p']:.2g})"
    )
    remedy = "give ours more steps or restarts; if it stays, report it"
    return Alarm("cross-check", "suspect", evidence, remedy)
