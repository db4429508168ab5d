"""`robustcli eval`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call

HELP = "Clean accuracy, robust accuracy and attack success, each with n and a 95 % interval."
EXAMPLES = ("robustcli eval --model run:runs/train/latest", "robustcli eval --model run:runs/train/latest --steps 40 --fail-under robust_acc=0.45")
FLAGS = (
    "set", "model", "weights", "plugin", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "attack", "steps", "target", "n", "first",
    "split", "eval_batch", "device", "search", "seed", "threads", "name", "out", "overwrite", "fail_under", "allow_pickle_weights", "smoke", "dry_run",
    "json", "quiet", "verbose", "debug",
)  # fmt: skip


def run(call: Call) -> dict[str, Any]:
    """One evaluation."""
    loaded = call.load()
    from robustcli.jobs.evaluate import EvalFlags, evaluate

    flags = EvalFlags(overwrite=call["overwrite"], dry_run=call["dry_run"], plugin=call["plugin"], allow_pickle=call["allow_pickle_weights"])
    return evaluate(loaded, call.console, flags)
