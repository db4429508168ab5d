"""`robustcli bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustcli.cli.call import Call, attack_settings

if TYPE_CHECKING:
    from robustcli.config.load import Loaded

HELP = "What training costs here: images per second of attack and training steps by precision, share of the measured peak, memory, waiting for data."
EXAMPLES = ("robustcli bench train/digits", "robustcli bench smoke/fake --model resnet18 --batch-size auto")
FLAGS = (
    "set", "model", "weights", "plugin", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "steps", "bench_batch", "device", "search",
    "seed", "threads", "name", "out", "overwrite", "allow_pickle_weights", "smoke", "json", "quiet", "verbose", "debug",
)  # fmt: skip
_AUTO = "auto"
_SMOKE_STEPS, _SMOKE_BATCH = 2, 32


def run(call: Call) -> dict[str, Any]:
    """Measure a training configuration; --steps means those of its adversary."""
    auto, steps = call["bench_batch"] == _AUTO, call["steps"]
    values = {**call.values, "steps": None, "bench_batch": None if auto else call["bench_batch"]}

    def adjust(loaded: Loaded) -> list[str]:
        small = [f"train.batch_size={_SMOKE_BATCH}"] if call["smoke"] else []
        return small + attack_settings(
            "train", loaded, None, steps or (_SMOKE_STEPS if call["smoke"] else None)
        )

    loaded = Call(call.verb, values, call.console).load(adjust)
    from robustcli.jobs.bench import bench
    from robustcli.jobs.flags import BenchFlags

    flags = BenchFlags(
        overwrite=call["overwrite"],
        smoke=call["smoke"],
        auto_batch=auto,
        plugin=call["plugin"],
        allow_pickle=call["allow_pickle_weights"],
    )
    return bench(loaded, call.console, flags)
