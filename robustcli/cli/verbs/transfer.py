"""`robustcli transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, OUTPUT, RUN, SAMPLE
from robustcli.cli.processes import alone
from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.config.load import Loaded

POSITION = 50
HELP = "Do attacks carry over? Points made on each model, shown to all of them: the share that they break."
EXAMPLES = (
    "robustcli transfer --models run:runs/demo/latest/natural,run:runs/demo/latest/robust",
    "robustcli transfer --models run:runs/train/latest,run:runs/demo/latest/robust --attack fgsm --n 200",
)
FLAGS = (
    *("set", "models", "normalize", *DATA_AND_BALL, "attack", "steps", *SAMPLE, *MACHINE, *RUN),
    *("nproc", "allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)


def run(call: Call) -> dict[str, Any] | None:
    """One matrix; without a CONFIG the data and ball of the first run among the models."""
    given = call
    from robustcli.models.meant import meant_model

    named = [text.strip() for text in (call.text("models") or "").split(",")]
    models = [meant_model(name) for name in named if name]
    if len(models) < 2:
        raise UsageError(
            f"transfer needs two models or more, got {len(models)}",
            where="--models",
            hint="--models run:A,run:B",
        )
    trained = [model for model in models if model.startswith("run:")]
    if trained and call.source() is None:
        call = call.replaced(model=trained[0])
    loaded = call.load(lambda loaded: _few_images(call, loaded))
    nproc = alone(given, loaded)
    from robustcli.jobs.transfer import transfer
    from robustcli.jobs.verb_flags import MeasureFlags

    flags = MeasureFlags(
        overwrite=call.on("overwrite"),
        dry_run=call.on("dry_run"),
        allow_pickle=call.on("allow_pickle_weights"),
        nproc=nproc,
    )
    return transfer(loaded, models, call.console, flags)


def _few_images(call: Call, loaded: Loaded) -> list[str]:
    """32 images under --smoke, unless the call or the configuration says how many."""
    if call.on("smoke") and loaded.config.eval.n is None and loaded.config.eval.first is None:
        return ["eval.n=32"]
    return []
