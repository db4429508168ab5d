"""`robustcli guard eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN, SAMPLE

if TYPE_CHECKING:
    from robustcli.config.load import Loaded

POSITION = 20
HELP = (
    "What a guard holds: bare, oblivious and adaptive robust accuracy side by side, what rejecting costs, "
    "and whether to believe it."
)
EXAMPLES = (
    "robustcli guard eval --model guard:runs/guard/run-1",
    "robustcli guard eval --model guard:runs/guard/run-1 --attack autoattack:rapid --n 500 --json",
)
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "attack", "steps", *SAMPLE, *MACHINE, *RUN),
    *("fail_under", "strict", "allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)
#: What runs on the bare network where neither the call nor a configuration says it.
_ATTACKS = "attacks=[{name: apgd, steps: 50}, {name: apgd, loss: dlr, steps: 50}]"


def run(call: Call) -> dict[str, Any]:
    """One evaluation of a guarded model."""
    loaded = call.load(lambda loaded: _settings(call, loaded))
    from robustcli.jobs.guard.eval import guard_eval
    from robustcli.jobs.verb_flags import EvalFlags

    flags = EvalFlags(
        overwrite=call.on("overwrite"),
        dry_run=call.on("dry_run"),
        strict=call.on("strict"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
    )
    return guard_eval(loaded, call.console, flags)


def _settings(call: Call, loaded: Loaded) -> list[str]:
    """The usual attacks, unless the call or its configuration names some."""
    if loaded.path is not None or call.text("attack"):
        return []
    return [_ATTACKS]
