"""`robustcli train`."""

from __future__ import annotations

import os
from typing import Any

import typer

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MODEL, OUTPUT
from robustcli.cli.options import as_argv
from robustcli.cli.processes import check_no_torchrun, count
from robustcli.errors import UsageError

POSITION = 20
HELP = "Adversarial training: choose on validation, keep the best, resume to the bit."
EXAMPLES = ("robustcli train train/digits", "robustcli train smoke/digits --eps 0.05 train.optimizer.lr=0.05")
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "steps", "epochs", "minutes", "train_batch"),
    *("device", "precision", "search", "seed", "seeds", "threads"),
    *("name", "out", "resume", "overwrite", "override_resume", "allow_pickle_weights"),
    *("nproc", "max_restarts", "smoke", "dry_run", "no_report", *OUTPUT),
)


def run(call: Call) -> dict[str, Any] | None:
    """One training, or one per seed; with --nproc in many processes."""
    loaded = call.load()
    nproc, restarts = count(call, "nproc", "1"), count(call, "max_restarts", "0")
    if (nproc != 1 or restarts) and not call.on("dry_run"):
        raise typer.Exit(_launch(call, nproc, restarts))
    from robustcli.jobs.seeds import train_seeds
    from robustcli.jobs.train import next_steps, train
    from robustcli.jobs.verb_flags import TrainFlags

    flags = TrainFlags(
        resume=call.on("resume"),
        overwrite=call.on("overwrite"),
        override_resume=tuple(call.texts("override_resume")),
        dry_run=call.on("dry_run"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
        report=call.reports(),
    )
    seeds = call.text("seeds")
    if seeds:
        document = train_seeds(loaded, call.console, flags, seeds)
    else:
        document = train(loaded, call.console, flags)
    if os.environ.get("RANK", "0") != "0":
        return None  # rank 0 speaks for all
    if not flags.dry_run:
        norms = [ball.norm for ball in loaded.config.balls]
        next_steps(document, call.console, norms, flags.plugin)
    return document


def _launch(call: Call, nproc: int, restarts: int) -> int:
    """Train in many processes of this machine; returns the exit code."""
    if call.text("seeds"):
        raise UsageError(
            "--seeds and --nproc exclude each other", hint="one command per seed: --seed 0 --nproc N"
        )
    check_no_torchrun("train")
    from robustcli.assembly.launch import launch

    argv = as_argv("train", call.values, without=("nproc", "max_restarts"))
    return launch(argv, nproc, restarts, call.console)
