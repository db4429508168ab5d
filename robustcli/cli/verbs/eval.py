"""`robustcli eval`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN, SAMPLE
from robustcli.cli.merging import merge_flags
from robustcli.cli.processes import alone

POSITION = 40
HELP = (
    "Clean accuracy, robust accuracy and attack success, each with n and a 95 % interval, "
    "and whether to believe them."
)
EXAMPLES = (
    "robustcli eval --model run:runs/train/latest --attack autoattack:rapid",
    "robustcli eval --model run:runs/train/latest --steps 40 --fail-under robust_acc=0.45",
)
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "attack", "steps", "target", *SAMPLE, *MACHINE, *RUN),
    *("skip", "resume", "nproc", "shard", "merge", "sweep", "surrogate", "cross_check", "attack_plugin"),
    *(
        "fail_under",
        "strict",
        "labels_only",
        "allow_pickle_weights",
        "smoke",
        "dry_run",
        "no_report",
        *OUTPUT,
    ),
)
_WITH_MERGE = ("merge", *RUN, "strict", "fail_under", "no_report", *OUTPUT)


def run(call: Call) -> dict[str, Any] | None:
    """One evaluation, also in many processes, or the merger of several parts of one."""
    if call.text("merge") is not None:
        from robustcli.jobs.merge import merge

        return merge(call.console, merge_flags(call, FLAGS, _WITH_MERGE))
    loaded = call.load()
    nproc = alone(call, loaded)
    from robustcli.jobs.evaluate import evaluate
    from robustcli.jobs.verb_flags import EvalFlags

    flags = EvalFlags(
        overwrite=call.on("overwrite"),
        resume=call.on("resume"),
        dry_run=call.on("dry_run"),
        strict=call.on("strict"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
        nproc=nproc,
        shard=call.text("shard"),
        surrogates=call.texts("surrogate"),
        cross_check=call.text("cross_check"),
        attack_plugin=call.text("attack_plugin"),
        report=call.reports(),
    )
    return evaluate(loaded, call.console, flags)
