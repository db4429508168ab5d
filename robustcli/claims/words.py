"""What the numbers of a run mean, in sentences: threat model, training, limits, what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli import registry
from robustcli.claims.measured import Measured
from robustcli.claims.provenance import Provenance, section
from robustcli.config.threats import stated_ball
from robustcli.records.eval import EvalRow
from robustcli.reporting.cells import amount, format_eps
from robustcli.reporting.page.blocks import code
from robustcli.reporting.page.threat import attacker


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
        return [f"Not known from these records: they say that the weights are those of {code(model)}."]
    config = run.config
    data, objective = section(config, "data"), section(config, "objective")
    facts = [f"Data set {code(data.get('name', '?'))}, split `train`; validation chose the checkpoint."]
    if data.get("extra"):
        facts.append(f"A share of {data.get('extra_ratio')} of each batch came from {code(data['extra'])}.")
    facts.append(f"Architecture {code(section(config, 'model').get('name', '?'))}.")
    facts.append(_objective(str(objective.get("name", "?")), config))
    train = section(config, "train")
    facts.append(
        f"Length: {_length(train)}, batches of {train.get('batch_size', '?')}, seed {config.get('seed', 0)}."
    )
    if run is not provenance.dossier:
        facts.append(f"So says the run {code(run.path.as_posix())} as it lies there now.")
    return facts


def threat(provenance: Provenance, numbers: Sequence[Measured]) -> list[str]:
    """Goal, knowledge and capability of the attacker of these numbers; says so where there was none."""
    if not any(number.norm for number in numbers):
        return ["None: nothing was attacked."]
    return [f"{name}: {text}." for name, text in attacker(provenance.dossier)]


def unfit(provenance: Provenance) -> str:
    """Why the numbers of this run are no claim; "" where they are one."""
    dossier = provenance.dossier
    if not dossier.measured:
        ended = "" if dossier.code is None else f", exit code {dossier.code}"
        return f"the run has not ended well (state {dossier.state or 'unknown'}{ended})"
    if dossier.partial:
        return f"{dossier.partial} were measured: no number is final"
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
        return f"Objective {code(name)}, which runs no attack."
    ball, adversary = stated_ball(config.get("ball")), section(config, "adversary")
    norm, eps = str(ball.get("norm", "?")), ball.get("eps")
    radius = format_eps(eps, norm) if isinstance(eps, (int, float)) else "?"
    steps = f" with {adversary['steps']} steps" if adversary.get("steps") else ""
    return f"Objective {code(name)} against {code(adversary.get('name', '?'))}{steps}, {norm} {radius}."


def _length(train: Mapping[str, Any]) -> str:
    for key in ("epochs", "steps", "minutes"):
        if train.get(key) is not None:
            return f"{train[key]} {key}"
    return "not stated"
