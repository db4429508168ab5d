"""What the numbers of a run do not say: limits of the claim, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustcli.config.threats import members
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.records.sweep import SweepRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import format_eps
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Bullets, Section, code
from robustcli.reporting.page.threat import attacks_of
from robustcli.reporting.page.words import ball_of, data_of, described, listed

_NORMS = ("linf", "l2", "l1", "l0")
_WEAK = {"fgsm", "noise", "pgd", "mi_fgsm", "vmi_fgsm", "bsr", "square"}


def limits_section(run: Dossier) -> Section:
    """How far the claim goes."""
    return Section("limits", "Limits of the claim", [Bullets(limits(run))])


def limits(run: Dossier) -> list[str]:
    """What the numbers do not say although they may be read so."""
    row, found = described(run), []
    n = getattr(row, "n", 0)
    split = getattr(row, "split", "validation")
    if n:
        found.append(
            f"It is about {n:,} images of the split {code(split or '?')} of {code(data_of(run))}, and images"
            " like them. The intervals say what chance alone does with so many, and nothing of other images."
        )
    if run.of(EvalRow):
        found.append(
            "Robust accuracy is an upper bound: it counts images that these attacks did not break. A stronger"
            " attack can only lower it."
        )
    if run.of(CertifyRow):
        found.append(
            "A certificate holds for this image, this norm and this radius, for any attack. It says nothing"
            " of other images, and nothing beyond the radius."
        )
    if run.verb == "train":
        found.append(
            "These are validation numbers, and validation has chosen the checkpoint: they are too good."
        )
    if run.verb == "guard fit":
        found.append("It says which clean images the guard rejects, and nothing of attacked ones.")
    if run.verb == "demo":
        found.append("Short attacks on a small network: it shows the idea and is no evaluation.")
    if (ball := ball_of(run)) is not None and run.verb != "guard fit":
        found.append(
            f"It holds for {ball[0]} up to {format_eps(ball[1], ball[0])}. A larger change, or one of another"
            " kind, is another question."
        )
    if data := _chosen(run):
        found.append(data)
    return found


def _chosen(run: Dossier) -> str:
    """How the images were chosen where they are not all of the split."""
    settings = run.config.get("eval")
    if not isinstance(settings, Mapping) or run.verb not in ("eval", "attack", "certify", "guard eval"):
        return ""
    if settings.get("first"):
        return f"Measured were the first {settings['first']} images in stored order, not a random sample."
    if settings.get("n"):
        return f"Measured was a seeded sample of at most {settings['n']} images, each class by its share."
    return ""


def untested_section(run: Dossier) -> Section:
    """What the record does not cover, derived from what it does."""
    return Section("untested", "Not tested", [Bullets(untested(run))])


def untested(run: Dossier) -> list[str]:
    """One sentence for each kind of question that the run leaves open."""
    if not run.measured:
        return ["Everything: the run has no result."]
    ball = ball_of(run)
    found = []
    if ball is not None:
        tested = [name.partition(":")[0] for name in members(ball[0])]
        others = [norm for norm in _NORMS if norm not in tested]
        if others:
            told = "Robustness under one norm says little about another."
            found.append(f"Other norms: {listed(others)}. {told}")
        if not any(row.key == "eps" for row in run.of(SweepRow)) and len(run.of(CertifyRow)) < 3:
            found.append("Other radii: how the number falls as the attacker may do more (`--sweep eps=...`).")
    found += _attacks(run)
    if not run.of(CertifyRow):
        found.append("Proof: attacks show what breaks and prove nothing (`robustcli certify`).")
    if not _has_unbounded(run):
        found.append("Changes without a ball: noise, blur, weather, rotation, patches, objects in the scene.")
    if not run.of(GuardRow) and _guarded(run):
        found.append("Attacks that adapt to the guard (`robustcli guard eval`).")
    found.append("Attacks on training data or weights (poisoning, backdoors), theft of the model, privacy.")
    found.append("Drift: images from another source, time or camera than those of this data set.")
    return found


def _attacks(run: Dossier) -> list[str]:
    """Which kinds of attack did not run."""
    known = set(attacks_of(run).values())
    found = []
    if run.verb in ("eval", "attack", "guard eval", "certify"):
        if "AML.T0043.001" not in known:
            found.append(
                "Black-box attacks by queries, which would show masked gradients (`square`, `autoattack`)."
            )
        if "AML.T0043.002" not in known and not run.of(TransferRow):
            found.append("Images made on other models (`robustcli transfer`, `--surrogate`).")
    if run.target is not None and run.of(EvalRow):
        found.append("Attacks that want any wrong class: these aimed at one, which is harder for them.")
    names = {row.attack for row in run.of(EvalRow) if row.kind == "attack"}
    if names and names <= _WEAK:
        ball, strongest = ball_of(run), "autoattack"
        if ball is not None and ball[0] == "l0":
            strongest = "sigma_zero"
        found.append(
            f"A strong ensemble: only single attacks ran. Publish numbers of `--attack {strongest}`."
        )
    if any(row.title.startswith("rapid:") for row in run.of(EvalRow)) and not _escalated(run.document):
        found.append("The whole of AutoAttack: its short form `rapid` ran, with a check of survivors.")
    if run.verb in ("train", "guard fit"):
        found.append("The test split: nothing here was measured on it, or only clean (`robustcli eval`).")
    return found


def _escalated(document: Mapping[str, Any]) -> bool:
    audit = document.get("audit")
    return isinstance(audit, Mapping) and bool(audit.get("escalated"))


def _has_unbounded(run: Dossier) -> bool:
    return any(row.norm == "none" for row in run.of(EvalRow))


def _guarded(run: Dossier) -> bool:
    return bool(run.config.get("defences")) or run.verb == "guard fit"
