"""`robustcli report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT, Flag, add_flag

POSITION = 70
HELP = (
    "One page that a stranger can judge a run by: verdict, threat model, alarms, limits, hashes. "
    "Several runs are compared with the first."
)
EXAMPLES = ("robustcli report runs/eval/latest", "robustcli report runs/eval/old runs/eval/new --out report")
WORDS = "Run directories: runs/eval/latest."
WORDS_METAVAR = "RUN [RUN]..."
FLAGS = (
    add_flag(
        "report_out",
        Flag("Directory of the report, instead of that of the first run.", names=("--out",), metavar="DIR"),
    ),
    add_flag(
        "report_over",
        Flag("Write into --out also beside other files.", kind="switch", names=("--overwrite",)),
    ),
    add_flag("sign", Flag("Sign the run with its report and its weights.", kind="switch")),
    add_flag("private_key", Flag("With --sign: an elliptic-curve key in PEM.", metavar="KEY")),
    add_flag("verify", Flag("Is the run as it was signed? Writes nothing.", kind="switch")),
    add_flag("public_key", Flag("With --verify: the key that must have signed.", metavar="PUB")),
    *OUTPUT,
)


def run(call: Call) -> dict[str, Any]:
    """Write the report of the runs, and say where; or check the signature of signed ones."""
    from robustcli.jobs.evidence.signed import sign_report, signer_for, verify_report

    runs, out = call.texts("words"), call.text("report_out")
    if call.on("verify"):
        return verify_report(runs, call.text("public_key"), call.console)
    signer = signer_for(runs, out, call.text("private_key")) if call.on("sign") else None
    from robustcli.jobs.evidence.report import report

    document = report(runs, out, call.on("report_over"))
    for found in document["runs"]:
        call.console.info(f"{found['run']}: {found['verdict']}: {found['sentence']}".replace("`", ""))
    for line in document["stale"]:
        call.console.warn(f"stale: {line}")
    call.console.info(f"report: {document['report']}")
    if signer is not None:
        document |= sign_report(Path(document["run"]), signer, document["stale"])
        call.console.info(f"signature: {document['signature']}")
    return document
