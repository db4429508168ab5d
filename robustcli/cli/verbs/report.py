"""`robustcli report`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT

POSITION = 70
HELP = (
    "One page that a stranger can judge a run by: verdict, threat model, alarms, limits, hashes. "
    "Several runs are compared with the first."
)
EXAMPLES = ("robustcli report runs/eval/latest", "robustcli report runs/eval/old runs/eval/new --out report")
WORDS = "Run directories: runs/eval/latest."
WORDS_METAVAR = "RUN [RUN]..."
FLAGS = ("out", "overwrite", *OUTPUT)


def run(call: Call) -> dict[str, Any]:
    """Write the report of the runs, and say where."""
    from robustcli.jobs.evidence.report import report

    document = report(call.texts("words"), call.text("out"), call.on("overwrite"))
    for found in document["runs"]:
        call.console.info(f"{found['run']}: {found['verdict']}: {found['sentence']}".replace("`", ""))
    for line in document["stale"]:
        call.console.warn(f"stale: {line}")
    call.console.info(f"report: {document['report']}")
    return document
