"""`robustcli transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, OUTPUT, RUN, SAMPLE, Flag, add_flag
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
_JOINS = ("loss", "logits", "best")
_TOGETHER = add_flag(
    "together",
    Flag(
        "Also points made on all models but the one that sees them: loss, logits or best.",
        metavar="loss|logits|best",
        complete=lambda incomplete: [word for word in _JOINS if word.startswith(incomplete)],
    ),
)
FLAGS = (
    *("set", "models", _TOGETHER, "normalize", *DATA_AND_BALL, "attack", "steps", *SAMPLE, *MACHINE, *RUN),
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
    call, told = _with_strongest(given, call)
    loaded = call.load(lambda loaded: _few_images(call, loaded))
    nproc = alone(given, loaded)
    if told:
        call.console.info(told)
    from robustcli.jobs.transfer import transfer
    from robustcli.jobs.verb_flags import TransferFlags

    flags = TransferFlags(
        overwrite=call.on("overwrite"),
        dry_run=call.on("dry_run"),
        allow_pickle=call.on("allow_pickle_weights"),
        nproc=nproc,
        together=_join(call),
    )
    return transfer(loaded, models, call.console, flags)


def _join(call: Call) -> Literal["loss", "logits", "best"] | None:
    """How --together joins models. Raises UsageError for another word."""
    match call.text("together"):
        case None:
            return None
        case "loss" | "logits" | "best" as join:
            return join
        case other:
            raise UsageError(f"--together {other!r}", hint=f"one of {', '.join(_JOINS)}")


def _with_strongest(given: Call, call: Call) -> tuple[Call, str]:
    """(the call with our strongest attacks, what to say), where nobody named an attack.

    Attacks that a model's own run was configured with were not named for this. Under a norm that none of ours
    knows, the attacks stay. `given`: the call as it came.
    """
    from robustcli.config.load import load_config
    from robustcli.config.tree import DEFAULT

    chosen = load_config(given.source(), given.overrides(), bind=False).origins.get("attacks.0.name")
    if given.text("attack") is not None or chosen != DEFAULT:
        return call, ""
    from robustcli.assembly.strongest import strongest

    named = ",".join(strongest({ball.norm for ball in call.load().config.balls}))
    if not named:
        return call, ""
    return call.replaced(attack=named), f"attacks: {named}, our strongest between models (--attack: others)"


def _few_images(call: Call, loaded: Loaded) -> list[str]:
    """32 images under --smoke, unless the call or the configuration says how many."""
    if call.on("smoke") and loaded.config.eval.n is None and loaded.config.eval.first is None:
        return ["eval.n=32"]
    return []
