"""The report that `eval` and `train` write by themselves when they end."""

from __future__ import annotations

from robustcli.errors import RobustCliError
from robustcli.store.follower import Follower
from robustcli.store.run import Run
from robustcli.terminal.console import Console


def leave_report(run: Run | Follower, console: Console) -> None:
    """Write report.html into a run that has its result; a follower writes nothing.

    The result counts and the page does not: a failure of it is a warning.
    """
    if isinstance(run, Follower):
        return
    try:
        from robustcli.jobs.evidence.report import write_page  # late: a page that nobody wants costs nothing

        page = write_page(run.path)
    except Exception as error:  # whatever it is, the numbers are there and the exit code is theirs
        told = error.line() if isinstance(error, RobustCliError) else f"{type(error).__name__}: {error}"
        console.warn(f"no report.html was written: {told}; try: robustcli report {run.path}")
        return
    console.info(f"report: {page}")
