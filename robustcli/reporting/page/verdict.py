"""The verdict of a run: one sentence, three numbers, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robustcli.proportions import Rate
from robustcli.records.certify import CertifyRow
from robustcli.records.guard import GuardRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import amount, percent
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.guard_table import guard_sentence
from robustcli.reporting.page.blocks import Light, Number, Verdict, code
from robustcli.reporting.page.words import around, ball_of, change, listed, share

#: Verbs whose numbers say how robust a model is. Without a number they have no verdict.
MEASURING = ("eval", "attack", "certify", "transfer", "guard eval")
#: What was found, and its numbers.
Finding = tuple[str, Sequence[Number]]
_ENDINGS = {
    "running": "The run has not ended, or it was killed: nothing here is final.",
    "preempted": "The run was stopped before its end; it can be resumed. Nothing here is final.",
    "failed": "The run failed: there is no result.",
}


def verdict_of(run: Dossier, stale: Sequence[str] = ()) -> Verdict:
    """The verdict of one run. stale: what no longer matches its record, in words."""
    if not run.measured:
        return _without_result(run)
    sentence, numbers = _FINDINGS.get(run.verb, _of_parts)(run)
    if run.verb in MEASURING and not numbers:
        return Verdict("none", "NO RESULT", sentence, (), "There is no number to trust.")
    light, word, trust = _trust(run, stale)
    return Verdict(light, word, sentence, numbers, trust)


def _without_result(run: Dossier) -> Verdict:
    """Of a run that has not ended well. It never looks like one that has."""
    told = _ENDINGS.get(run.state, "The run has left no result.")
    if run.code not in (None, 0):
        told += f" Its exit code is {run.code}."
    word = "FAILED" if run.state == "failed" else "NO RESULT"
    light: Light = "bad" if run.state == "failed" else "none"
    return Verdict(light, word, told, (), "There is no number to trust.")


def _trust(run: Dossier, stale: Sequence[str]) -> tuple[Light, str, str]:
    """(light, word, sentence): the worst of what stands against the numbers comes first."""
    unmet = [gate for gate in run.document.get("gate") or () if not gate.get("passed")]
    names = listed(sorted({alarm.name for alarm in run.alarms if alarm.level != "note"})) or "see below"
    if run.reliability == "invalid":
        return "bad", "INVALID", f"These numbers must not be used: {names}."
    if stale:
        return "bad", "STALE", f"What is here now is not what was measured: {'; '.join(stale)}."
    if unmet:
        told = "; ".join(f"{gate.get('metric')} is {_value(gate.get('value'))}" for gate in unmet)
        return "bad", "BELOW THE THRESHOLD", f"A threshold that was set for this run is not met: {told}."
    if partial := run.document.get("partial"):
        return "care", "PARTIAL", f"Only {partial['shards']} of {partial['of']} parts were measured."
    if run.reliability == "suspect":
        return "care", "SUSPECT", f"Believe these numbers only after the alarms were answered: {names}."
    if run.notes and run.verb in (*MEASURING, "train"):
        return "care", "LOOK", f"The run itself says: {run.notes[0].rstrip('.')}."
    if run.verb not in MEASURING:
        return "good", "DONE", _NEXT.get(run.verb, "The run measures no robustness of its own.")
    return "good", "NO ALARM", "None of the checks has found a reason to doubt these numbers."


#: What measures the robustness that a run does not.
_NEXT = {
    "train": "Validation has chosen this model. `robustcli eval` measures its robustness, on test data.",
    "guard fit": "What an attacker leaves who knows the guard is what `robustcli guard eval` measures.",
    "demo": "Short attacks on a small model: a demonstration, not an evaluation.",
}


def _value(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


# ---- one function per verb ---------------------------------------------------------------------------------


def _of_evaluation(run: Dossier) -> Finding:
    clean, worst = run.eval_row("clean"), run.eval_row("worst")
    if clean is None or worst is None or worst.robust is None:
        return "The run has measured no robust accuracy.", ()
    told = _per_hundred(clean.clean, worst.robust, change(worst.norm, worst.eps))
    numbers = [
        Number("clean accuracy", share(clean.clean), around(clean.clean)),
        Number("robust accuracy", share(worst.robust), around(worst.robust)),
    ]
    if worst.success is not None:
        about = around(worst.success).replace("images", "images that were right")
        numbers.append(Number("attack success", share(worst.success), about))
    return told, numbers


def _per_hundred(clean: Rate, robust: Rate, allowed: str) -> str:
    return (
        f"The model is right on {percent(clean.value)} of 100 images as they are, and still on"
        f" {percent(robust.value)} of 100 when an attacker may {allowed}."
    )


def _of_guard(run: Dossier) -> Finding:
    row = next(iter(run.of(GuardRow)), None)
    if row is None:
        return _of_evaluation(run)
    numbers = [
        Number(name, share(row.standing(view)), around(row.standing(view)))
        for name, view in (
            ("robust without the guard", "bare"),
            ("robust, attacker does not know the guard", "oblivious"),
            ("robust, attacker knows the guard", "adaptive"),
        )
    ]
    told = guard_sentence(row)
    rejected = f"It rejects {share(row.clean_rejected)} of clean images."
    return f"The guard {told}. {rejected}", numbers


def _of_certificate(run: Dossier) -> Finding:
    rows = run.of(CertifyRow)
    ball = ball_of(run)
    at = next((row for row in rows if ball is not None and row.eps == ball[1]), rows[-1] if rows else None)
    if at is None:
        return "The run has proven nothing.", ()
    told = (
        f"For {percent(at.certified_acc.value)} of 100 images it is proven by {at.method} that no attacker"
        f" changes the right answer who may {change(at.norm, at.eps)}. Attacks left"
        f" {percent(at.robust_acc.value)} of 100 right: the truth lies between."
    )
    clean = next((row for row in rows if row.eps == 0), at)
    return told, [
        Number("clean accuracy", share(clean.robust_acc), around(clean.robust_acc)),
        Number("certified accuracy", share(at.certified_acc), around(at.certified_acc)),
        Number("robust under attack", share(at.robust_acc), around(at.robust_acc)),
    ]


def _of_training(run: Dossier) -> Finding:
    rows, best = run.of(TrainRow), run.document.get("best") or {}
    row = next((row for row in rows if row.epoch == best.get("epoch")), rows[-1] if rows else None)
    if row is None or row.clean is None:
        return f"The training has ended after {amount(int(run.document.get('steps', 0)), 'step')}.", ()
    told = f"The training has ended. Its best model, of epoch {row.epoch:.4g}, is right on"
    told += f" {percent(row.clean.value)} of 100 validation images as they are"
    numbers = [Number("clean, validation", share(row.clean), around(row.clean))]
    if row.robust is not None:
        told += f", and on {percent(row.robust.value)} of 100 when an attacker may"
        told += f" {change(row.norm, row.eps)}"
        numbers.append(Number("robust, validation", share(row.robust), around(row.robust)))
    gap = run.document.get("robust_overfitting")
    if isinstance(gap, float):
        numbers.append(Number("robust overfitting", f"{100 * gap:.1f} points", "best minus last, validation"))
    return f"{told}.", numbers


def _of_transfer(run: Dossier) -> Finding:
    rows = [row for row in run.of(TransferRow) if row.rate is not None]
    others = [row for row in rows if row.source != row.target]
    if not others:
        return "No image is classified right by all models: there is nothing to measure.", ()
    worst = max(others, key=lambda row: row.k / row.n)
    own = next((row for row in rows if row.source == row.target == worst.target), None)
    assert worst.rate is not None
    told = (
        f"Images made on {code(worst.source)} break {code(worst.target)} most: {percent(worst.rate.value)} of"
        f" 100 images that all models get right, when an attacker may {change(worst.norm, worst.eps)}."
    )
    numbers = [Number("worst transfer", share(worst.rate), around(worst.rate))]
    if own is not None and own.rate is not None:
        numbers.append(Number("broken by its own", share(own.rate), around(own.rate)))
    numbers.append(Number("models", str(len({row.source for row in rows})), f"{worst.n:,} common images"))
    return told, numbers


def _of_fit(run: Dossier) -> Finding:
    test = run.document.get("test") or {}
    n = test.get("n")
    if not n:
        return "The guard was fitted. No test image was left to try it on.", ()
    rejected, right = (Rate(round(test[key] * n), n) for key in ("clean_rejected", "clean_acc"))
    asked = run.document.get("fpr")
    told = f"The guard rejects {percent(rejected.value)} of 100 clean test images"
    told += f"; its thresholds were set for {100 * asked:.4g}." if asked is not None else "."
    return told, [
        Number("clean, right and accepted", share(right), around(right)),
        Number("clean, rejected", share(rejected), around(rejected)),
        Number("defences", str(len(run.document.get("defences") or ())), ""),
    ]


def _of_demo(run: Dossier) -> Finding:
    models = run.document.get("models") or {}
    if not {"natural", "robust"} <= models.keys():
        return _of_parts(run)
    rates = {name: _rate(models[name], "robust_acc") for name in ("natural", "robust")}
    clean, ball = _rate(models["robust"], "clean_acc"), models["robust"]
    told = (
        f"Under the same attack the robust model keeps {percent(rates['robust'].value)} of 100 images, the"
        f" natural one {percent(rates['natural'].value)}, when an attacker may"
        f" {change(ball['norm'], ball['eps'])}."
    )
    return told, [
        Number("natural model, robust accuracy", share(rates["natural"]), around(rates["natural"])),
        Number("robust model, robust accuracy", share(rates["robust"]), around(rates["robust"])),
        Number("robust model, clean accuracy", share(clean), around(clean)),
    ]


def _rate(document: Mapping[str, Any], key: str) -> Rate:
    n = int(document["n"])
    return Rate(round(document[key] * n), n)


def _of_parts(run: Dossier) -> Finding:
    """Of a verb that measures no accuracy of its own."""
    if run.parts:
        return f"The run holds {amount(len(run.parts), 'other run')}, each with a chapter below.", ()
    return f"The run of {code(run.verb)} has ended.", ()


_FINDINGS: Mapping[str, Callable[[Dossier], Finding]] = {
    "eval": _of_evaluation,
    "attack": _of_evaluation,
    "guard eval": _of_guard,
    "certify": _of_certificate,
    "train": _of_training,
    "transfer": _of_transfer,
    "guard fit": _of_fit,
    "demo": _of_demo,
}
