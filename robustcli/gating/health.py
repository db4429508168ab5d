"""Why a run cannot be judged. A model passes only by an evaluation that ended well and raised no doubt."""

from __future__ import annotations

from robustcli.reporting.dossier import Dossier


def unhealthy(run: Dossier) -> str:
    """What is wrong with a run; "" where it may be judged."""
    if run.state != "done":
        return f"the run is not done: {run.state or 'it has no state'}"
    if run.code != 0:
        return f"the run ended with exit code {run.code}"
    if not run.document:
        return "the run has no summary.json"
    if partial := run.document.get("partial"):
        return f"partial {partial.get('shards')}/{partial.get('of')} shards: no number is final"
    if run.reliability != "ok":
        names = sorted({alarm.name for alarm in run.alarms if alarm.level != "note"})
        return f"the evaluation is {run.reliability}: {', '.join(names) or 'it says so itself'}"
    return ""
