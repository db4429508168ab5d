"""`robustcli bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustcli.cli.attack_flags import adversary, given_steps, step_settings
from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN

if TYPE_CHECKING:
    from robustcli.config.load import Loaded

POSITION = 60
HELP = (
    "What training costs here: images per second of attack and training steps by precision, "
    "share of the measured peak, memory, waiting for data."
)
EXAMPLES = ("robustcli bench train/digits", "robustcli bench smoke/fake --model resnet18 --batch-size auto")
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "steps", "bench_batch", *MACHINE, *RUN),
    *("allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)
_AUTO = "auto"
_SMOKE_STEPS, _SMOKE_BATCH = 2, 32


def run(call: Call) -> dict[str, Any]:
    """Measure a training configuration; --steps means those of its adversary."""
    auto_batch = call.text("bench_batch") == _AUTO
    plain = call.replaced(steps=None)
    if auto_batch:
        plain = plain.replaced(bench_batch=None)
    loaded = plain.load(lambda loaded: _adversary_settings(call, loaded))
    from robustcli.jobs.bench import bench
    from robustcli.jobs.verb_flags import BenchFlags

    flags = BenchFlags(
        overwrite=call.on("overwrite"),
        smoke=call.on("smoke"),
        dry_run=call.on("dry_run"),
        auto_batch=auto_batch,
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
    )
    return bench(loaded, call.console, flags)


def _adversary_settings(call: Call, loaded: Loaded) -> list[str]:
    """--steps for the adversary, and a small batch and few steps under --smoke."""
    settings, steps = [], call.text("steps")
    if call.on("smoke"):
        settings.append(f"train.batch_size={_SMOKE_BATCH}")
    if steps:
        settings += given_steps(adversary(loaded), steps)
    elif call.on("smoke"):
        settings += step_settings(adversary(loaded), _SMOKE_STEPS)
    return settings
