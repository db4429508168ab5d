"""`robustcli train`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call

HELP = "Adversarial training: choose on validation, keep the best, resume to the bit."
EXAMPLES = ("robustcli train train/digits", "robustcli train smoke/digits --eps 0.05 train.optimizer.lr=0.05")
FLAGS = (
    "set", "model", "weights", "plugin", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "steps", "epochs", "minutes", "train_batch",
    "device", "precision", "search", "seed", "seeds", "threads", "name", "out", "resume", "overwrite", "override_resume", "allow_pickle_weights",
    "smoke", "dry_run", "json", "quiet", "verbose", "debug",
)  # fmt: skip


def run(call: Call) -> dict[str, Any]:
    """One training, or one per seed."""
    loaded = call.load()
    from robustcli.jobs.seeds import train_seeds
    from robustcli.jobs.train import TrainFlags, train

    flags = TrainFlags(
        resume=call["resume"],
        overwrite=call["overwrite"],
        override_resume=tuple(call["override_resume"] or ()),
        dry_run=call["dry_run"],
        plugin=call["plugin"],
        allow_pickle=call["allow_pickle_weights"],
    )
    return train_seeds(loaded, call.console, flags, call["seeds"]) if call["seeds"] else train(loaded, call.console, flags)
