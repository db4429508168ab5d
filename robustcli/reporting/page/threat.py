"""The threat model of a run in words: what the attacker wants, knows and may do.

Terms are those of NIST AI 100-2e2025; techniques and mitigations have their numbers of MITRE ATLAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustcli import registry
from robustcli.errors import RobustCliError
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Block, Bullets, Facts, Section, Text, code
from robustcli.reporting.page.words import ball_of, change, listed, models_of, named
from robustcli.store.latest import resolve_run

TECHNIQUES = {
    "AML.T0015": "Evade AI Model",
    "AML.T0043.000": "Craft Adversarial Data: White-Box Optimization",
    "AML.T0043.001": "Craft Adversarial Data: Black-Box Optimization",
    "AML.T0043.002": "Craft Adversarial Data: Black-Box Transfer",
}
MITIGATIONS = {"AML.M0003": "Model Hardening", "AML.M0015": "Adversarial Input Detection"}
#: What an attack asks the model for -> the technique that it is.
_BY_NEED = {"gradient": "AML.T0043.000", "scores": "AML.T0043.001", "decisions": "AML.T0043.001"}
_TRANSFER = "AML.T0043.002"
#: Targets that are no class -> what the model is to answer.
_TARGETS = {
    "random": "a wrong class that was drawn for each image",
    "least-likely": "the class that it holds for the least likely",
}
_LINEAGE = 4  # runs that weights came through


def threat_section(run: Dossier) -> Section:
    """The attacker that the run has tried, the techniques, and the mitigations in place."""
    tried = techniques(run) if attacks_of(run) else []
    blocks: list[Block] = [
        Facts(attacker(run)),
        Text("Tried here, by the techniques of MITRE ATLAS:" if tried else "No attack was tried here."),
        Bullets([f"{name} {TECHNIQUES[name]}{_by(run, name)}" for name in tried]),
        Text("Mitigations in place, as far as the run says:"),
        Bullets([f"{name} {MITIGATIONS[name]}: {why}" for name, why in mitigations(run)]),
    ]
    if not mitigations(run):
        blocks[-2:] = [Text("The run does not say that a mitigation is in place.")]
    return Section("threat", "Threat model", blocks)


def attacker(run: Dossier) -> tuple[tuple[str, str], ...]:
    """Goal, knowledge and capability of the attacker, in words."""
    ball = ball_of(run)
    goal = "an integrity violation: the model answers a wrong class to an image it was right on"
    if run.target is not None:
        wanted = _TARGETS.get(str(run.target), f"the class {code(run.target)}")
        goal = f"a targeted integrity violation: the model answers {wanted}"
    allowed = f", who may {change(*ball)}" if ball is not None else ""
    capability = (
        f"testing data control: the input at inference is the attacker's{allowed};"
        " training data and weights stay out of reach"
    )
    return ("Goal", goal), ("Knowledge", _knowledge(run)), ("Capability", capability)


def techniques(run: Dossier) -> list[str]:
    """ATLAS numbers of what the run has tried: evasion, and how its points were made."""
    return ["AML.T0015", *(name for name in list(TECHNIQUES)[1:] if used(run, name))]


def used(run: Dossier, technique: str) -> list[str]:
    """Names of the attacks of a run that are this technique."""
    return [label for label, kind in attacks_of(run).items() if kind == technique]


def attacks_of(run: Dossier) -> dict[str, str]:
    """Attack, as tables name it -> its technique; "" for one that is not known to us."""
    found: dict[str, str] = {}
    for row in run.of(EvalRow):
        if row.kind == "attack":
            surrogate = row.attack.partition(":")[0] == "transfer"
            found[row.title] = _TRANSFER if surrogate else _technique(row.attack)
    for guard in run.of(GuardRow):
        found |= {label: found.get(label, "AML.T0043.000") for label in guard.adaptive_attacks}
    for pair in run.of(TransferRow):
        found[f"{pair.attack} on another model"] = _TRANSFER
    for model in models_of(run).values():
        for attack in model.get("attacks") or ():
            label = str(attack.get("name"))
            found[label] = _technique(label.partition("-")[0])
    for proven in run.of(CertifyRow):
        found |= {label: _technique(label.partition("-")[0]) for label in proven.attacks}
    if not found:
        for spec in _configured(run):
            found[named(spec)] = _technique(named(spec))
    return found


def _configured(run: Dossier) -> Sequence[object]:
    """The attack that a training ran against, and the one that validated it, where there was one."""
    if run.verb != "train":
        return ()
    objective = named(run.config.get("objective"))
    attacked = objective in registry.objectives and registry.objectives.get(objective).facts.inner is not None
    found = [run.config.get("adversary")] if attacked else []
    validated = {row.attack for row in run.of(TrainRow) if row.robust is not None and row.attack}
    return [spec for spec in (*found, *sorted(validated)) if named(spec)]


def _technique(name: str) -> str:
    if name not in registry.attacks:
        return ""
    return _BY_NEED[registry.attacks.get(name).facts.needs]


def _by(run: Dossier, technique: str) -> str:
    names = used(run, technique)
    return f", by {listed([code(name) for name in names])}" if names else ""


def _knowledge(run: Dossier) -> str:
    """White box, black box, or both."""
    found = techniques(run)
    told = []
    if "AML.T0043.000" in found:
        told.append("white box: architecture, weights and gradients are known")
    if "AML.T0043.001" in found:
        told.append("black box: only answers of the model are seen (query access)")
    if _TRANSFER in found:
        told.append("black box without queries: images are made on another model")
    if run.of(GuardRow):
        told.append("the defences are known, and the attack adapts to them")
    return "; ".join(told) or "not tried"


def mitigations(run: Dossier) -> list[tuple[str, str]]:
    """(ATLAS number, why) for what the configuration names."""
    found = []
    objective = _objective(run)
    if objective and objective != "natural":
        found.append(("AML.M0003", f"robust training with the objective {code(objective)}"))
    defences = [named(spec) for spec in run.config.get("defences") or ()]
    guard = next(iter(run.of(GuardRow)), None)
    if guard is not None:
        defences = [str(one.get("label", one.get("name"))) for one in guard.defences]
    elif run.verb == "guard fit":
        defences = defences or [str(name) for name in run.document.get("defences") or ()]
    if defences:
        found.append(("AML.M0015", f"the guard with {listed([code(name) for name in defences])}"))
    return found


def _objective(run: Dossier, depth: int = 0) -> str:
    """The objective that trained the model: of the run itself, or of the run that its weights come from.

    A configuration names an objective that nobody used where the weights come from elsewhere: "" for those.
    """
    if run.verb == "train":
        return named(run.config.get("objective"))
    kind, _, folder = named(run.config.get("model")).partition(":")
    if kind not in ("run", "guard") or depth >= _LINEAGE or run.verb == "transfer":
        return ""
    try:
        return _objective(Dossier.read(resolve_run(Path(folder))), depth + 1)
    except RobustCliError:
        return ""
