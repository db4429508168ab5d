"""`robustcli gate RUN`: may this model ship? From the records of a run alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustcli.gating.judging import about, judged
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import Outcome, Verdict
from robustcli.gating.words import gate_table
from robustcli.jobs.evidence.posting import Posting
from robustcli.records.document import Document
from robustcli.reporting.dossier import Dossier
from robustcli.store.latest import resolve_run
from robustcli.terminal.console import Console

_Json = dict[str, Any]


def gate_run(path: Path, thresholds: Sequence[Threshold], console: Console, posting: Posting) -> _Json:
    """Judge a run by its records; returns the `gate` document. posting: gets what is known as it is known.

    Raises UnreliableError (exit 10) for a run that is not done, partial, suspect or invalid, UsageError for a
    threshold that the run has no number for.
    """
    document = Document("gate")
    run = Dossier.read(resolve_run(path))
    posting.outcome = seen(replace(posting.outcome, thresholds=thresholds), run)
    posting.outcome = decided(posting.outcome, judged(run, thresholds), document)
    return answer(document, posting.outcome, run, console)


def seen(outcome: Outcome, run: Dossier) -> Outcome:
    """The outcome with what is known of the run before it is judged."""
    total = run.document.get("n")
    looks = (*outcome.looks, total) if isinstance(total, int) else outcome.looks
    return replace(outcome, run=str(run.path), about=about(run), alarms=run.alarms, looks=looks)


def decided(outcome: Outcome, verdicts: Sequence[Verdict], document: Document) -> Outcome:
    """The outcome with its verdicts. document: of the verb, whose seconds count."""
    return replace(outcome, verdicts=verdicts, seconds=document.seconds)


def answer(document: Document, outcome: Outcome, run: Dossier, console: Console) -> _Json:
    """Show the verdicts, and the document of --json. Its key `gate` decides the exit code."""
    console.table(gate_table(outcome))
    for alarm in outcome.alarms:
        console.warn(alarm.line())
    content = {
        "verdict": outcome.word,
        "thresholds": [verdict.to_json() for verdict in outcome.verdicts],
        "looks": list(outcome.looks),
        "reliability": run.reliability,
        "alarms": [alarm.to_json() for alarm in outcome.alarms],
        "gate": [_checked(verdict) for verdict in outcome.verdicts],
    }
    return document.finish(run.path, content)


def _checked(verdict: Verdict) -> _Json:
    """One entry of `gate`, as the documents of all verbs have it."""
    return {"metric": verdict.threshold.name, "value": verdict.required, "passed": verdict.passed}
