"""`--nproc` of the verbs that measure."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import typer

from robustcli.cli.call import Call
from robustcli.cli.flags import spellings
from robustcli.cli.options import as_argv
from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.config.load import Loaded


def count(call: Call, name: str, default: str) -> int:
    """The number that a flag gives. Raises UsageError for any other text."""
    text = call.text(name) or default
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise UsageError(f"{spellings(name)[0]} {text!r} is not a number")
    return int(text)


def check_no_torchrun(verb: str) -> None:
    """Raises UsageError inside torchrun, which has started the processes already."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        hint = f"torchrun --nproc-per-node N -m robustcli {verb} ... does without it"
        raise UsageError("--nproc inside torchrun", hint=hint if verb == "train" else "start it without")


def alone(call: Call, loaded: Loaded) -> int:
    """The number of processes that a plan is for; returns where this process does the work by itself.

    Raises typer.Exit with the exit code of the processes that were started and have done it. Raises
    UsageError: an impossible number, or --nproc with --shard.
    """
    nproc = count(call, "nproc", "1")
    if call.text("nproc") is None:
        return 1
    if call.values.get("shard") is not None:
        hint = "--nproc is for one machine, --shard for many"
        raise UsageError("--nproc and --shard exclude each other", hint=hint)
    check_no_torchrun(call.verb)
    from robustcli.assembly.together import check_processes, measure_together

    device = loaded.config.device
    check_processes(nproc, device)
    if nproc == 1 or call.on("dry_run"):
        return nproc
    argv = as_argv(call.verb, call.values, without=("nproc",))
    raise typer.Exit(measure_together(argv, nproc, device, call.console))
