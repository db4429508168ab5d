"""Why a run cannot be judged. A model passes only by an evaluation that ended well and raised no doubt."""

from __future__ import annotations

from robustcli.errors import DataError
from robustcli.reporting.contradictions import contradictions
from robustcli.reporting.dossier import Dossier


def unhealthy(run: Dossier) -> str:
    """What is wrong with a run; "" where it may be judged."""
    if run.state != "done":
        return f"the run is not done: {run.state or 'it has no state'}"
    if run.code != 0:
        return f"the run ended with exit code {run.code}"
    if not run.document:
        return "the run has no summary.json"
    if run.document.get("ok") is False:
        return "its summary.json is that of a failure"
    if partial := run.partial:
        return f"{partial}: no number is final"
    if run.reliability != "ok":
        names = sorted({alarm.name for alarm in run.alarms if alarm.level != "note"})
        return f"the evaluation is {run.reliability}: {', '.join(names) or 'it says so itself'}"
    return ""


def check_records(run: Dossier) -> None:
    """Raises DataError E-RECORD (exit 3) where two files of a run contradict each other."""
    if found := contradictions(run):
        raise DataError(
            found[0],
            where=str(run.path),
            hint="records are written by robustcli and not edited by hand; measure again",
            code="E-RECORD",
        )
