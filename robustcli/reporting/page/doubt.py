"""Whether to believe the numbers: the alarms of a run and what each of them means."""

from __future__ import annotations

from robustcli.records.alarm import Alarm
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Block, Bullets, Light, Notice, Section, Text, code
from robustcli.reporting.page.verdict import MEASURING

_LIGHTS: dict[str, Light] = {"invalid": "bad", "suspect": "care", "note": "none"}
#: What each alarm says of a number. docs/alarms.md has the thresholds.
MEANINGS = {
    "non-finite-logits": "An image without an answer counts as unbroken, so NaN would look like robustness.",
    "random-forward": "One lucky draw proves nothing for or against the model.",
    "batch-dependent": "The answer to one image depends on its neighbours.",
    "model-mutated": "The model measured last is not the one measured first.",
    "softmax-output": "The loss of probabilities has gradients that vanish, and attacks stand still.",
    "optimisation-at-inference": "The defence adapts to the attack; its gradients are wrong or absent.",
    "float-noise": "A large constant swallows the differences that gradients are made of.",
    "below-chance": "Labels and answers differ in meaning: another order of classes, another normalisation.",
    "too-few-classes": "Some losses of attacks need more classes; others take their place.",
    "train-mode": "The model was measured in eval mode, which may not be what you deploy.",
    "zero-gradient": "A step function stands in the way of the attack's search.",
    "saturated-loss": "Answers are so sure that the loss of the attack is flat.",
    "non-finite-gradient": "Attacks stand still where the gradient is no number.",
    "exploding-gradient": "The gradient promises more than any step can hold: it leads nowhere.",
    "gradient-mismatch": "The backward pass is not that of the forward pass.",
    "noise-beats-gradient": "Random points find more than the search does: the search is misled.",
    "fgsm-beats-pgd": "One step must not beat thirty: the search is misled.",
    "black-box-beats-white-box": "A search without gradients finds more: gradients are masked.",
    "loss-dependent": "One loss leads astray where another does not.",
    "minimal-beats-fixed": "A search that may leave the ball finds ways that one inside it does not.",
    "not-converged": "The number still falls with more effort: read it as an upper bound.",
    "survives-huge-eps": "No classifier is right on every image there is: the search fails.",
    "outside-ball": "An attack made points outside the ball; they were not counted.",
    "large-eps-survivors": "Images stand where each could be made grey: the attack fails.",
    "transfer-beats-white-box": "Images made on another model break this one more: it masks its gradients.",
    "escalation-due": "The short list of attacks is too weak for this model.",
    "cross-check": "Another library's attack broke more: ours is too weak here.",
    "planted-missed": "The search does not find wrong and accepted points that are known to be there.",
    "nothing-planted": "The search could not be tested with points that are known to be there.",
    "extra-holds-test": "The network may have been trained on images that it is measured on.",
    "implies-robust-classifier": "The number would be a classifier more robust than any known one.",
}


def doubt_section(run: Dossier) -> Section:
    """Reliability, and each alarm with its evidence, its meaning and its remedy."""
    blocks: list[Block] = [_state(run), *map(_alarm, run.alarms)]
    if run.notes:
        blocks += [Text("The run says:"), Bullets(run.notes)]
    return Section("reliability", "Reliability", blocks)


def _state(run: Dossier) -> Block:
    if not run.measured:
        return Notice("none", "NOT KNOWN", "The run has not ended well, so nothing was concluded.")
    if run.verb not in MEASURING:
        return Text("The checks of an evaluation have not run here: `robustcli eval` makes them.")
    if run.reliability == "ok":
        told = "None of the checks fired. That is no proof of robustness: it says that the search has worked."
        return Notice("good", "OK", told)
    light = _LIGHTS[run.reliability]
    return Notice(light, run.reliability.upper(), "The worst level of the alarms below.")


def _alarm(alarm: Alarm) -> Block:
    meaning = MEANINGS.get(alarm.name, "")
    told = f"{code(alarm.name)}: {alarm.evidence}. {meaning} What to do: {alarm.remedy}."
    return Notice(_LIGHTS.get(alarm.level, "none"), alarm.level.upper(), " ".join(told.split()))
