"""`robustcli train`."""

from __future__ import annotations

import os
import re
from typing import Any

import typer

from robustcli.cli.call import Call
from robustcli.cli.options import as_argv
from robustcli.errors import UsageError

HELP = "Adversarial training: choose on validation, keep the best, resume to the bit."
EXAMPLES = ("robustcli train train/digits", "robustcli train smoke/digits --eps 0.05 train.optimizer.lr=0.05")
FLAGS = (
    "set", "model", "weights", "plugin", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "steps", "epochs", "minutes", "train_batch",
    "device", "precision", "search", "seed", "seeds", "threads", "name", "out", "resume", "overwrite", "override_resume", "allow_pickle_weights",
    "nproc", "max_restarts", "smoke", "dry_run", "json", "quiet", "verbose", "debug",
)  # fmt: skip


def run(call: Call) -> dict[str, Any] | None:
    """One training, or one per seed; with --nproc in many processes."""
    loaded = call.load()
    nproc, restarts = _count(call, "nproc", 1), _count(call, "max_restarts", 0)
    if (nproc != 1 or restarts) and not call["dry_run"]:
        raise typer.Exit(_launch(call, nproc, restarts))
    from robustcli.jobs.flags import TrainFlags
    from robustcli.jobs.seeds import train_seeds
    from robustcli.jobs.train import train

    flags = TrainFlags(
        resume=call["resume"],
        overwrite=call["overwrite"],
        override_resume=tuple(call["override_resume"] or ()),
        dry_run=call["dry_run"],
        plugin=call["plugin"],
        allow_pickle=call["allow_pickle_weights"],
    )
    document = (
        train_seeds(loaded, call.console, flags, call["seeds"])
        if call["seeds"]
        else train(loaded, call.console, flags)
    )
    return document if os.environ.get("RANK", "0") == "0" else None  # rank 0 speaks for all


def _count(call: Call, name: str, default: int) -> int:
    text = call[name] or str(default)
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise UsageError(f"--{name.replace('_', '-')} {text!r} is not a number")
    return int(text)


def _launch(call: Call, nproc: int, restarts: int) -> int:
    if call["seeds"]:
        raise UsageError(
            "--seeds and --nproc exclude each other", hint="one command per seed: --seed 0 --nproc N"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            "--nproc inside torchrun",
            hint="torchrun --nproc-per-node N -m robustcli train ... does without it",
        )
    from robustcli.assembly.launch import launch

    return launch(
        as_argv("train", call.values, without=("nproc", "max_restarts")), nproc, restarts, call.console
    )
