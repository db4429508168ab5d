"""`robustcli certify`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN, SAMPLE, Flag, add_flag
from robustcli.cli.merging import merge_flags

POSITION = 45
HELP = (
    "What is proven: certified accuracy at each radius, beside the accuracy under attack of the same samples."
)
EXAMPLES = (
    "robustcli certify --model run:runs/train/latest --method smoothing --norm l2 --eps 0.5 --n 100",
    "robustcli certify certify/digits_smoothing --model run:runs/train/latest",
)
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "attack", "steps"),
    add_flag("method", Flag("smoothing; null = chosen by what can be proven.", "certify.method")),
    add_flag("radii", Flag("Radii that are asked for: 1/255,2/255.", "certify.radii", metavar="RADIUS,…")),
    add_flag("sigma", Flag("Of the noise that smooths, on the [0, 1] scale.", "certify.smoothing.sigma")),
    add_flag("draws", Flag("Draws of that noise for each image.", "certify.smoothing.n")),
    *(*SAMPLE, "skip", *MACHINE, *RUN, "resume", "shard", "merge"),
    *("strict", "allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)
_WITH_MERGE = ("merge", *RUN, "strict", *OUTPUT)


def run(call: Call) -> dict[str, Any]:
    """One certification, or the merger of several parts of one."""
    if call.text("merge") is not None:
        from robustcli.jobs.certify.merge import merge

        return merge(call.console, merge_flags(call, FLAGS, _WITH_MERGE))
    loaded = call.load()
    from robustcli.jobs.certify.flags import CertifyFlags
    from robustcli.jobs.certify.run import certify

    flags = CertifyFlags(
        overwrite=call.on("overwrite"),
        resume=call.on("resume"),
        dry_run=call.on("dry_run"),
        strict=call.on("strict"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
        shard=call.text("shard"),
    )
    return certify(loaded, call.console, flags)
