"""`robustcli guard fit`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import MODEL, OUTPUT, RUN

POSITION = 10
HELP = "Train and calibrate defences around a model; thresholds hold a stated false-positive rate."
EXAMPLES = (
    "robustcli guard fit guard/digits",
    "robustcli guard fit --model run:runs/train/latest 'defences=[energy]' guard.fpr=0.01",
)
FLAGS = (
    *("set", *MODEL, "data", "download", "device", "seed", "threads", *RUN),
    *("allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)


def run(call: Call) -> dict[str, Any]:
    """One fit."""
    loaded = call.load()
    from robustcli.jobs.guard.fit import guard_fit
    from robustcli.jobs.verb_flags import MeasureFlags

    flags = MeasureFlags(
        overwrite=call.on("overwrite"),
        dry_run=call.on("dry_run"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
    )
    return guard_fit(loaded, call.console, flags)
