"""`robustcli attack`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN, SAMPLE
from robustcli.cli.processes import alone

if TYPE_CHECKING:
    from robustcli.config.load import Loaded

POSITION = 30
HELP = (
    "Write the images that break a model: "
    "8-bit PNGs inside the ball, read back and scored again, and a gallery."
)
EXAMPLES = (
    "robustcli attack --model run:runs/train/latest --n 32",
    "robustcli attack --model run:runs/train/latest --attack fgsm --target least-likely",
)
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "attack", "steps", "target", *SAMPLE, *MACHINE, *RUN),
    *("nproc", "labels_only", "allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)


def run(call: Call) -> dict[str, Any] | None:
    """One attack run, also in many processes."""
    loaded = call.load(_few_images)
    nproc = alone(call, loaded)
    from robustcli.jobs.attack import attack
    from robustcli.jobs.verb_flags import MeasureFlags

    flags = MeasureFlags(
        overwrite=call.on("overwrite"),
        dry_run=call.on("dry_run"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
        nproc=nproc,
    )
    return attack(loaded, call.console, flags)


def _few_images(loaded: Loaded) -> list[str]:
    """Without --n or --first the first question is about 64 images."""
    if loaded.config.eval.n is None and loaded.config.eval.first is None:
        return ["eval.n=64"]
    return []
