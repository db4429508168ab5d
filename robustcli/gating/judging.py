"""A run and its thresholds in, one verdict for each out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustcli.errors import UnreliableError
from robustcli.gating.baseline import drop_of
from robustcli.gating.evidence import ALPHA, Drop, Evidence, WorstClass
from robustcli.gating.health import check_records, unhealthy
from robustcli.gating.measured import check_goal, evidence_of
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import Verdict, judge
from robustcli.records.eval import EvalRow
from robustcli.reporting.cells import Eps, shown
from robustcli.reporting.dossier import Dossier
from robustcli.store.latest import resolve_run


def check_health(run: Dossier) -> None:
    """Raises UnreliableError (exit 10) for a run that may not be judged, and as `check_records`."""
    if reason := unhealthy(run):
        raise UnreliableError(
            f"nothing was judged: {reason}", where=str(run.path), hint="see docs/alarms.md, and measure again"
        )
    check_records(run)


def judged(run: Dossier, thresholds: Sequence[Threshold], alpha: float = ALPHA) -> list[Verdict]:
    """The verdict of each threshold. alpha: what each of them may be wrong at this look.

    Raises what `check_health`, `evidence_of` and `drop_of` raise.
    """
    check_health(run)
    return [_judged(run, threshold, alpha) for threshold in thresholds]


def _judged(run: Dossier, threshold: Threshold, alpha: float) -> Verdict:
    evidence: Evidence
    check_goal(run.target, threshold)
    if threshold.baseline is None:
        evidence = evidence_of(run, threshold)
    else:
        baseline = baseline_of(threshold.baseline)
        check_goal(baseline.target, threshold)
        evidence = drop_of(run, baseline, threshold)
    return judge(threshold, evidence, alpha, _note(evidence))


def baseline_of(path: str) -> Dossier:
    """The run that a drop is measured against. Raises as `Dossier.read` and `check_health`."""
    baseline = Dossier.read(resolve_run(Path(path)))
    check_health(baseline)
    return baseline


def _note(evidence: Evidence) -> str:
    if isinstance(evidence, WorstClass):
        return f"class {evidence.name}, the least of {len(evidence.classes)}"
    if isinstance(evidence, Drop):
        return f"{evidence.lost} lost and {evidence.gained} gained"
    return ""


def about(run: Dossier) -> str:
    """What a run measured, in words: `run:x on digits (test), linf 0.1`."""
    row = next(iter(run.of(EvalRow)), None)
    if row is None:
        return run.verb
    return f"{row.model} on {row.data} ({row.split}), {shown(Eps(row.eps, row.norm))}"
