"""What the record answers of Article 15 of the EU AI Act and of ISO/IEC 24029-2: facts, no legal claim."""

from __future__ import annotations

from robustcli.proportions import Rate
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.records.sweep import SweepRow
from robustcli.reporting.cells import Cell, format_eps, format_rate
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Block, Grid, Section, Text, code
from robustcli.reporting.page.limits import untested
from robustcli.reporting.page.threat import attacks_of, mitigations
from robustcli.reporting.page.words import ball_of, data_of, listed
from robustcli.reporting.tables import Table

_NONE = "Not measured by this run."
_NOTE = "These are facts of the record. Whether they meet an obligation is for others to judge."
#: Method of proof -> (whether it is complete, what it computes with).
_SMOOTHING = "smoothing"


def standards_section(run: Dossier) -> Section:
    """Two tables: what each text asks for, and what the run has to say about it."""
    act = Table("Article 15, Regulation (EU) 2024/1689", ["asked for", "in this record"], _act(run))
    norm = Table("ISO/IEC 24029-2:2023", ["criterion", "in this record"], _norm(run))
    blocks: list[Block] = [Text(_NOTE), Grid(act), Grid(norm)]
    return Section("standards", "What standards ask for", blocks)


def _act(run: Dossier) -> list[list[Cell]]:
    """One line per paragraph of Article 15."""
    return [
        ["15(1) accuracy", _accuracy(run)],
        ["15(1) robustness", _robustness(run)],
        [
            "15(1) consistent over the life cycle",
            "One moment was measured. A gate repeats it at each change.",
        ],
        ["15(3) metrics to declare in the instructions for use", _metrics(run)],
        ["15(4) errors, faults, inconsistencies of the environment", _faults(run)],
        ["15(4) redundancy, feedback loops", "Outside of what a measurement of a model says."],
        ["15(5) adversarial examples, model evasion", _evasion(run)],
        ["15(5) prevent, detect, respond", _measures(run)],
        ["15(5) poisoning, confidentiality, model flaws", _NONE],
    ]


def _norm(run: Dossier) -> list[list[Cell]]:
    """One line per criterion of clause 5, and for what clause 6.2.1 asks of a method."""
    return [
        ["5.2 domain", _domain(run)],
        ["5.3 stability", _stability(run)],
        ["5.4 sensitivity", _sensitivity(run)],
        ["5.5 relevance", _NONE],
        ["5.6 reachability", "Not applicable to single images; no states in an environment were looked at."],
        ["6.2.1 complete or incomplete", _complete(run)],
        ["6.2.1 deterministic or not", _deterministic(run)],
        ["6.2.1 arithmetic", _arithmetic(run)],
    ]


def _accuracy(run: Dossier) -> str:
    rate = _rate(run, "clean")
    return f"Clean accuracy {format_rate(rate)} images." if rate else _NONE


def _robustness(run: Dossier) -> str:
    told = []
    if rate := _rate(run, "robust"):
        told.append(f"Robust accuracy {format_rate(rate)} images, {_radius(run)}.")
    if proven := _proven(run):
        told.append(f"Certified accuracy {format_rate(proven.certified_acc)} images, {_radius(run)}.")
    return " ".join(told) or _NONE


def _metrics(run: Dossier) -> str:
    if run.eval_row("worst") or run.of(CertifyRow):
        return "Accuracy, robust accuracy and attack success, each with n and interval: the results above."
    return _NONE


def _faults(run: Dossier) -> str:
    found = [row.title for row in run.of(EvalRow) if row.norm == "none" and row.kind == "attack"]
    if found:
        return f"Measured under {listed([code(name) for name in found])}."
    return "Not measured: noise, blur, weather, broken sensors and shifts of the data."


def _evasion(run: Dossier) -> str:
    names = list(attacks_of(run))
    if not names or run.verb == "train":
        return _NONE
    told = f"Attacks: {listed([code(name) for name in names])}; reliability of the result: {run.reliability}."
    return f"{told} Not tested: {len(untested(run))} points, listed above."


def _measures(run: Dossier) -> str:
    found = [f"{name}: {why}" for name, why in mitigations(run)]
    return f"{'; '.join(found)}." if found else "The run does not say that a measure is in place."


def _domain(run: Dossier) -> str:
    ball = ball_of(run)
    told = f"Images of {code(data_of(run))}, pixels in [0, 1]"
    if ball is None:
        return f"{told}."
    radius = f"{ball[0]} {format_eps(ball[1], ball[0])}"
    return f"{told}; around each image all points within {radius} that are images."


def _stability(run: Dossier) -> str:
    """Whether the answer stays the same over the domain: proven, or not broken by attacks."""
    told = []
    if proven := _proven(run):
        told.append(f"Proven for {format_rate(proven.certified_acc)} images.")
    if rate := _rate(run, "robust"):
        told.append(
            f"No attack changed a right answer for {format_rate(rate)} images: an upper bound, no proof."
        )
    return " ".join(told) or _NONE


def _sensitivity(run: Dossier) -> str:
    swept = [row for row in run.of(SweepRow) if row.key == "eps"]
    radii = {row.eps for row in run.of(CertifyRow) if row.eps}
    if swept:
        return f"Robust accuracy at {len(swept)} radii: the sweep above."
    if len(radii) > 1:
        return f"Certified accuracy at {len(radii)} radii: the table above."
    return _NONE


def _complete(run: Dossier) -> str:
    if (proven := _proven(run)) is None:
        return "Attacks were run: no formal method."
    if proven.method == _SMOOTHING:
        return "Incomplete: a statistical bound, which may abstain."
    return f"Incomplete: {code(proven.method)} bounds the network from outside, so an image may stay unknown."


def _deterministic(run: Dossier) -> str:
    if (proven := _proven(run)) is not None and proven.method == _SMOOTHING:
        alpha = ((run.config.get("certify") or {}).get("smoothing") or {}).get("alpha")
        return (
            f"Not deterministic: a certificate may be wrong with probability {alpha}; the seed is recorded."
        )
    if run.rows:
        return f"Deterministic for a given seed; it was {run.config.get('seed', 'not recorded')}."
    return _NONE


def _arithmetic(run: Dossier) -> str:
    """Which numbers a verdict is computed with, and whether rounding is part of a proof."""
    proven = _proven(run)
    if proven is not None and proven.method == _SMOOTHING:
        return "Computer arithmetic: the network as it runs is sampled; its bound is computed in 64 bits."
    if proven is not None:
        return (
            "Both: bounds are computed in 64 bits and widened by the rounding of the network in 32 bits. So"
            " they hold in real numbers and for the network as it runs."
        )
    if run.of(EvalRow):
        return "Verdicts in 32-bit floating point, distances in 64 bits; a search may use less."
    return _NONE


def _rate(run: Dossier, name: str) -> Rate | None:
    """Clean or robust accuracy, of an evaluation or a certificate."""
    worst = run.eval_row("worst")
    if worst is not None:
        return worst.clean if name == "clean" else worst.robust
    rows = run.of(CertifyRow)
    if not rows:
        return None
    if name == "clean":
        return next((row.robust_acc for row in rows if not row.eps), None)
    proven = _proven(run)
    return proven.robust_acc if proven else None


def _proven(run: Dossier) -> CertifyRow | None:
    """The row of a certificate at the radius of the threat."""
    ball = ball_of(run)
    return next((row for row in run.of(CertifyRow) if ball is not None and row.eps == ball[1]), None)


def _radius(run: Dossier) -> str:
    ball = ball_of(run)
    guarded = " behind the guard, by an attacker who knows it" if run.of(GuardRow) else ""
    return f"{ball[0]} {format_eps(ball[1], ball[0])}{guarded}" if ball else guarded
