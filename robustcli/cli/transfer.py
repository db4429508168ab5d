"""`robustcli transfer`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.errors import UsageError

HELP = "Do attacks carry over? Points made on each model, shown to all of them: the share that they break."
EXAMPLES = (
    "robustcli transfer --models run:runs/demo/latest/natural,run:runs/demo/latest/robust",
    "robustcli transfer --models run:runs/train/latest,run:runs/demo/latest/robust --attack fgsm --n 200",
)
FLAGS = (
    "set", "models", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "attack", "steps", "n", "first", "split", "eval_batch", "device",
    "search", "seed", "threads", "name", "out", "overwrite", "allow_pickle_weights", "smoke", "dry_run", "json", "quiet", "verbose", "debug",
)  # fmt: skip


def run(call: Call) -> dict[str, Any]:
    """One matrix; without a CONFIG the data and ball of the first run among the models."""
    models = [text.strip() for text in (call["models"] or "").split(",") if text.strip()]
    if len(models) < 2:
        raise UsageError(
            f"transfer needs two models or more, got {len(models)}",
            where="--models",
            hint="--models run:A,run:B",
        )
    trained = next((text for text in models if text.startswith("run:")), None)
    if call.source() is None and trained is not None:
        call = Call(call.verb, {**call.values, "model": trained}, call.console)
    loaded = call.load(
        lambda first: (
            ["eval.n=32"]
            if call["smoke"] and first.config.eval.n is None and first.config.eval.first is None
            else []
        )
    )
    from robustcli.jobs.flags import MeasureFlags
    from robustcli.jobs.transfer import transfer

    flags = MeasureFlags(
        overwrite=call["overwrite"], dry_run=call["dry_run"], allow_pickle=call["allow_pickle_weights"]
    )
    return transfer(loaded, models, call.console, flags)
