"""What the numbers of a run mean, in sentences: threat model, training, limits, what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli import registry
from robustcli.claims.attackers import needs_of
from robustcli.claims.measured import ACCURACY, CERTIFIED, ROBUST, Measured
from robustcli.claims.provenance import Provenance, section
from robustcli.errors import printable
from robustcli.records.eval import EvalRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import amount, format_eps

NORMS: Mapping[str, str] = {
    "linf": "each value of each pixel changes by at most eps",
    "l2": "the Euclidean length of the change is at most eps",
    "l1": "the absolute changes of all values sum to at most eps",
}
_NEEDS = {
    "gradient": "the model's weights and gradients (white-box)",
    "scores": "the model's scores, with as many questions as the attack asks",
    "decisions": "the model's answers",
}


def quoted(text: Any) -> str:
    """A name as code, whatever it holds."""
    return f"`{printable(str(text)).replace('`', ' ')}`"


def intended_use(provenance: Provenance) -> list[str]:
    """What the model is for, as far as a record can know."""
    classes = _classes(provenance)
    among = f" into {classes} classes" if classes else ""
    return [
        f"It classifies images{among}. Inputs are pixels in [0, 1]; normalisation lies inside the model.",
        "The numbers speak for images like those of the data set below, and for nothing else.",
    ]


def training(provenance: Provenance) -> list[str]:
    """What the weights were trained on, and how; one sentence each."""
    run = provenance.training
    if run is None:
        model = provenance.model or "a model from outside"
        return [f"Not known from these records: they say that the weights are those of {quoted(model)}."]
    config = run.config
    data, objective = section(config, "data"), section(config, "objective")
    facts = [f"Data set {quoted(data.get('name', '?'))}, split `train`; validation chose the checkpoint."]
    if data.get("extra"):
        facts.append(f"A share of {data.get('extra_ratio')} of each batch came from {quoted(data['extra'])}.")
    facts.append(f"Architecture {quoted(section(config, 'model').get('name', '?'))}.")
    facts.append(_objective(str(objective.get("name", "?")), config))
    train = section(config, "train")
    facts.append(
        f"Length: {_length(train)}, batches of {train.get('batch_size', '?')}, seed {config.get('seed', 0)}."
    )
    if run is not provenance.dossier:
        facts.append(f"So says the run {quoted(run.path.as_posix())} as it lies there now.")
    return facts


def threat(provenance: Provenance, numbers: Sequence[Measured]) -> list[str]:
    """Goal, knowledge and capability of the attacker of these numbers; says so where there was none."""
    attacked = [number for number in numbers if number.norm]
    if not attacked:
        return ["None: nothing was attacked."]
    balls = {(number.norm, number.eps): None for number in attacked}
    target = section(provenance.config, "eval").get("target")
    goal = "any wrong class (untargeted)" if target is None else f"a chosen class ({target})"
    lines = [f"Goal: an evasion at inference time, {goal}."]
    knowledge = _knowledge(provenance)
    if knowledge:
        lines.append(f"Knowledge: {knowledge}.")
    for norm in dict.fromkeys(norm for norm, _ in balls):
        sizes = sorted(eps for name, eps in balls if name == norm)
        shown = ", ".join(format_eps(eps, norm) for eps in sizes)
        lines.append(f"Capability: {NORMS[norm]} ({norm}), eps = {shown}, pixels stay in [0, 1].")
    return lines


def limits(provenance: Provenance, numbers: Sequence[Measured]) -> list[str]:
    """What the numbers do not say although they may be read so."""
    kinds = {number.metric for number in numbers}
    lines = []
    if ROBUST in kinds:
        lines.append("Robust accuracy is an upper bound: a stronger attack may break more samples.")
    if CERTIFIED in kinds:
        lines.append("A certificate speaks of the network in the arithmetic of its method, and of this norm.")
    if any(number.split == "validation" for number in numbers):
        lines.append("These are validation numbers, and validation chose the checkpoint.")
    if provenance.dossier.of(TransferRow):
        lines.append("Transfer is counted over the samples that all models classify correctly.")
    if numbers:
        lines += [
            "An interval covers the choice of samples from the same source, not another source.",
            "Intervals are for one number each: among 20 of them one may miss.",
        ]
    return lines


def not_tested(provenance: Provenance, numbers: Sequence[Measured]) -> list[str]:
    """What nothing in this run was measured for."""
    norms = {number.norm for number in numbers if number.norm}
    others = [norm for norm in NORMS if norm not in norms]
    lines = []
    if not any(number.metric == ACCURACY for number in numbers):
        lines.append("Clean accuracy.")
    if others:
        lines.append(f"Changes bounded in {' or '.join(others)}.")
    if norms:
        lines.append("Changes larger than the eps above.")
    if not any(number.metric == CERTIFIED for number in numbers):
        lines.append("Proofs: no certificate was asked for.")
    if numbers and "scores" not in needs_of(provenance.dossier):
        lines.append(f"Attacks that see scores only{_audited(provenance)}.")
    if not provenance.dossier.of(TransferRow):
        lines.append("Points that were made on another model (transfer).")
    return [
        *lines,
        "Rotations, blur, noise and weather, unless an attack above is one of these.",
        "Images of another source, and classes that the model does not know.",
        "Poisoned training data, backdoors, theft of the model, and what it tells of its training data.",
    ]


def unfit(provenance: Provenance) -> str:
    """Why the numbers of this run are no claim; "" where they are one."""
    dossier = provenance.dossier
    if not dossier.measured:
        code = "" if dossier.code is None else f", exit code {dossier.code}"
        return f"the run has not ended well (state {dossier.state or 'unknown'}{code})"
    if dossier.reliability == "invalid":
        return "the evaluation is invalid: see the alarms"
    return ""


def reliability(provenance: Provenance) -> list[str]:
    """The verdict about the evaluation, and each alarm."""
    dossier = provenance.dossier
    alarms = dossier.alarms
    lines = [f"**{dossier.reliability}** ({amount(len(alarms), 'alarm')})"]
    return [*lines, *(alarm.line() for alarm in alarms), *dossier.notes]


def _classes(provenance: Provenance) -> int:
    names = provenance.dossier.document.get("classes")
    if isinstance(names, list):
        return len(names)
    return max((len(row.per_class) for row in provenance.dossier.of(EvalRow)), default=0)


def _objective(name: str, config: Mapping[str, Any]) -> str:
    """The outer loss, and the attack inside where it has one."""
    known = name in registry.objectives and registry.objectives.get(name).facts.inner is None
    if known:
        return f"Objective {quoted(name)}, which runs no attack."
    ball, adversary = section(config, "ball"), section(config, "adversary")
    norm, eps = str(ball.get("norm", "?")), ball.get("eps")
    radius = format_eps(eps, norm) if isinstance(eps, (int, float)) else "?"
    steps = f" with {adversary['steps']} steps" if adversary.get("steps") else ""
    return f"Objective {quoted(name)} against {quoted(adversary.get('name', '?'))}{steps}, {norm} {radius}."


def _length(train: Mapping[str, Any]) -> str:
    for key in ("epochs", "steps", "minutes"):
        if train.get(key) is not None:
            return f"{train[key]} {key}"
    return "not stated"


def _knowledge(provenance: Provenance) -> str:
    needs = needs_of(provenance.dossier)
    if provenance.dossier.of(TransferRow):
        return "the source model whole, and nothing of the target"
    return "; ".join(text for need, text in _NEEDS.items() if need in needs)


def _audited(provenance: Provenance) -> str:
    """Where a short list was audited: on how many samples."""
    worst = provenance.dossier.eval_row("worst")
    n = 0 if worst is None else worst.audit.get("n", 0)
    return f", but for the {n} samples of the audit" if n else ""
