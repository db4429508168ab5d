"""`robustcli attack`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call

HELP = "Write the images that break a model: 8-bit PNGs inside the ball, read back and scored again, and a gallery."
EXAMPLES = (
    "robustcli attack --model run:runs/train/latest --n 32",
    "robustcli attack --model run:runs/train/latest --attack fgsm --target least-likely",
)
FLAGS = (
    "set", "model", "weights", "plugin", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "attack", "steps", "target", "n", "first",
    "split", "eval_batch", "device", "search", "seed", "threads", "name", "out", "overwrite", "allow_pickle_weights", "smoke", "dry_run", "json", "quiet",
    "verbose", "debug",
)  # fmt: skip


def run(call: Call) -> dict[str, Any]:
    """One attack run; without --n or --first the first question is about 64 images."""
    loaded = call.load(
        lambda first: ["eval.n=64"] if first.config.eval.n is None and first.config.eval.first is None else []
    )
    from robustcli.jobs.attack import attack
    from robustcli.jobs.flags import MeasureFlags

    flags = MeasureFlags(
        overwrite=call["overwrite"],
        dry_run=call["dry_run"],
        plugin=call["plugin"],
        allow_pickle=call["allow_pickle_weights"],
    )
    return attack(loaded, call.console, flags)
