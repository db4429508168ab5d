"""`--seeds 0,1,2`: the same training several times, mean and spread."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

from robustcli.assembly.origin import pinned
from robustcli.config.load import Loaded
from robustcli.errors import UsageError
from robustcli.jobs.train import TrainFlags, train
from robustcli.reporting.tables import Table
from robustcli.store.rundir import newest_run
from robustcli.terminal.console import Console


def parse_seeds(text: str) -> list[int]:
    """``0,1,2`` as numbers. Raises UsageError."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--seeds {text!r} is not a list of numbers", hint="for example --seeds 0,1,2"
        ) from None
    if len(set(seeds)) != len(seeds) or any(not 0 <= seed < 2**63 for seed in seeds):
        raise UsageError(f"--seeds {text!r}: seeds must differ and lie in [0, 2^63)")
    return seeds


def train_seeds(loaded: Loaded, console: Console, flags: TrainFlags, text: str) -> dict[str, Any]:
    """One run per seed, named NAME-seedS (or OUT/seed-S); the document of the last with `seeds` and mean and spread."""
    began = time.perf_counter()
    documents: dict[int, dict[str, Any]] = {}
    config, seeds = loaded.config, parse_seeds(text)
    parts = {
        seed: {
            "name": f"{config.name}-seed{seed}"[:64],
            "out": f"{config.out}/seed-{seed}" if config.out else None,
        }
        for seed in seeds
    }
    first = (
        newest_run("train", str(parts[seeds[0]]["name"]), out=parts[seeds[0]]["out"])
        if flags.resume
        else None
    )
    config = pinned(
        config, first, console.info
    )  # one source for all: the run of the first seed is ``latest`` for the second
    for seed in seeds:
        documents[seed] = train(
            replace(loaded, config=config.model_copy(update={"seed": seed, **parts[seed]})), console, flags
        )
    if flags.dry_run:
        return next(iter(documents.values()))
    rows, spread = [], {}
    for metric in ("clean_acc", "robust_acc"):
        values = [d["best"][metric] for d in documents.values() if d["best"][metric] is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            spread[metric] = {
                "mean": statistics.fmean(values),
                "median": statistics.median(values),
                "std": deviation,
                "values": values,
            }
            rows.append(
                [
                    metric,
                    f"{statistics.fmean(values):.2%}",
                    f"{statistics.median(values):.2%}",
                    f"{deviation:.2%}",
                    str(len(values)),
                ]
            )
    console.table(Table("validation over seeds", ["metric", "mean", "median", "std", "seeds"], rows))
    last = next(reversed(documents.values()))
    return {
        **last,
        "seconds": round(time.perf_counter() - began, 3),
        "seeds": {str(s): d["run"] for s, d in documents.items()},
        "spread": spread,
    }
