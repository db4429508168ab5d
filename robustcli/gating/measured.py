"""What the records of a run say of a threshold. Nothing is interpolated and nothing computed anew."""

from __future__ import annotations

import math
from collections.abc import Iterator

from robustcli.config.number import format_number
from robustcli.config.threats import UNION, is_union, threat_name
from robustcli.config.thresholds import METRICS, Quantity
from robustcli.errors import UnreliableError, UsageError
from robustcli.gating.evidence import Evidence, Share, WorstClass
from robustcli.gating.threshold import Threshold
from robustcli.proportions import Rate
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.records.sweep import SweepRow
from robustcli.reporting.dossier import Dossier

_CLEAN = ("clean_acc", "worst_class_clean_acc")


def evidence_of(run: Dossier, threshold: Threshold) -> Evidence:
    """What a run has measured of a threshold that is no drop.

    Raises UsageError (exit 2) where no record has that quantity or that radius, UnreliableError (exit 10)
    where no sample was there to measure it on.
    """
    quantity = threshold.quantity
    found = next(_found(run, quantity), None)
    if found is None:
        raise UsageError(
            f"{quantity.name} was not measured by this run ({run.verb}); {_instead(run, quantity)}",
            where=threshold.where or str(run.path),
            hint=hint_for(quantity),
        )
    if isinstance(found, str):
        raise UnreliableError(f"{quantity.name}: {found}", where=str(run.path), hint="measure more samples")
    return found


def _found(run: Dossier, quantity: Quantity) -> Iterator[Evidence | str]:
    """Each record of the quantity; a text says which samples are missing."""
    metric = quantity.metric
    if metric in ("adaptive", "clean_rejected"):
        for row in run.of(GuardRow):
            yield Share(row.standing("adaptive") if metric == "adaptive" else row.clean_rejected)
    elif rows := run.of(CertifyRow):
        for certified in rows:
            yield from _of_certificate(run, certified, quantity)
    elif metric in _CLEAN:
        clean = run.eval_row("clean")
        yield from () if clean is None else _of_row(clean, metric)
    elif metric != "certified_acc":
        for total in _totals(run) if quantity.eps is not None else _of_the_run(run):
            if _at(quantity, total.norm, total.eps):
                yield from _of_row(total, metric)


def _totals(run: Dossier) -> list[EvalRow]:
    """The verdicts under all attacks: of the run, of each ball of its union, at the radii of its sweep."""
    of_balls = [row for row in run.of(EvalRow) if row.kind == "threat"]
    return [*_of_the_run(run), *of_balls, *(row.total for row in run.of(SweepRow) if row.key == "eps")]


def _of_the_run(run: Dossier) -> list[EvalRow]:
    """The verdicts under all attacks at the radius of the run; [] where it has none of its own."""
    worst = run.eval_row("worst")
    return [] if worst is None else [worst]


def _of_row(row: EvalRow, metric: str) -> Iterator[Evidence | str]:
    if metric.startswith("worst_class"):
        empty = [name for name, (_, n) in row.per_class.items() if not n]
        rates = {name: Rate(k, n) for name, (k, n) in row.per_class.items() if n}
        if empty:
            yield f"no sample of class {empty[0]!r} was measured"
        elif rates:
            yield WorstClass(rates)
        return
    rate = {"clean_acc": row.clean, "attack_success": row.success}.get(metric, row.robust)
    yield "no sample is right on the clean image" if rate is None else Share(rate)


def _of_certificate(run: Dossier, row: CertifyRow, quantity: Quantity) -> Iterator[Evidence]:
    """A row of a certification: at radius 0 the clean images, at the others what stands and what is proven.

    What stands there says something where attacks ran.
    """
    metric = quantity.metric
    if metric == "clean_acc" and row.eps == 0:
        yield Share(row.robust_acc)
    elif metric == "certified_acc" and row.eps and _at(quantity, row.norm, row.eps):
        yield Share(row.certified_acc)
    elif metric == "robust_acc" and row.attacks and _at(_or_of_run(run, quantity), row.norm, row.eps):
        yield Share(row.robust_acc)


def _or_of_run(run: Dossier, quantity: Quantity) -> Quantity:
    """The quantity at the radius of the threat, where none is asked for."""
    if quantity.eps is not None:
        return quantity
    return Quantity(quantity.metric, run.document.get("norm"), run.document.get("eps"))


def _at(quantity: Quantity, norm: str, eps: float) -> bool:
    """Whether a record is at the radius that is asked for; without one, the first record is."""
    if quantity.norm == UNION:
        return is_union(norm)
    return quantity.eps is None or same_radius(norm, eps, quantity.norm, quantity.eps)


def same_radius(norm: str, eps: float, other: str | None, eps_other: float) -> bool:
    """Whether both are one radius: 0.0313725 and 8/255 are, 0.031 and 8/255 are not."""
    return norm == other and math.isclose(eps, eps_other, rel_tol=1e-5)


def check_goal(target: str | int | None, threshold: Threshold) -> None:
    """Raises UsageError where attacks wanted one class: what they leave standing another class may break."""
    if target is not None and METRICS[threshold.quantity.metric].any_class:
        raise UsageError(
            f"{threshold.quantity.name} is about any wrong class; the attacks of this run wanted {target}",
            where=threshold.where,
            hint="evaluate without eval.target",
        )


def _instead(run: Dossier, quantity: Quantity) -> str:
    """What there is in its place."""
    certified = [f"{row.norm}:{format_number(row.eps)}" for row in run.of(CertifyRow) if row.eps]
    totals = [_at_radius(row) for row in _totals(run)]
    radii = list(dict.fromkeys(certified or totals))
    if quantity.eps is None or not radii:
        return "no record has it"
    return f"it has {', '.join(radii)}, and nothing is interpolated"


def _at_radius(row: EvalRow) -> str:
    return UNION if is_union(row.norm) else threat_name(row.norm, row.eps)


def hint_for(quantity: Quantity) -> str:
    """How to measure it."""
    if quantity.metric in ("adaptive", "clean_rejected"):
        return "judge a run of `guard eval`"
    if quantity.metric == "certified_acc":
        return "judge a run of `certify` with this radius among --radii"
    if quantity.norm == UNION:
        return "evaluate in a list of balls"
    if quantity.eps is not None:
        return f"evaluate with --eps {format_number(quantity.eps)}, or with it in --sweep eps=..."
    return "judge a run of `eval`"
