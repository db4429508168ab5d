"""`--seeds 0,1,2`: the same training several times, mean and spread."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from robustcli.assembly.origin import pinned
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.errors import UsageError
from robustcli.jobs.train import train
from robustcli.jobs.verb_flags import TrainFlags
from robustcli.records.document import Document
from robustcli.reporting.tables import Table
from robustcli.store.rundir import newest_run
from robustcli.terminal.console import Console

_METRICS = ("clean_acc", "robust_acc")
_LONGEST = 64  # characters of a run's name


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
    """One run per seed; returns the document of the last one, with all runs and the spread over them."""
    document = Document("train")
    seeds = parse_seeds(text)
    config = _with_one_source(loaded.config, seeds[0], console, flags)
    answers = {seed: train(replace(loaded, config=_of_seed(config, seed)), console, flags) for seed in seeds}
    if flags.dry_run:
        return answers[seeds[0]]
    spread = _spread(list(answers.values()))
    console.table(_table(spread))
    last = answers[seeds[-1]]
    runs = {str(seed): answer["run"] for seed, answer in answers.items()}
    return {**last, "seconds": document.seconds, "seeds": runs, "spread": spread}


def _of_seed(config: Config, seed: int) -> Config:
    """The configuration of one seed: its run is NAME-seedS, or OUT/seed-S."""
    out = f"{config.out}/seed-{seed}" if config.out else None
    return config.model_copy(update={"seed": seed, "name": _name(config.name, seed), "out": out})


def _name(name: str, seed: int) -> str:
    """NAME-seedS; a NAME for which there is no room is cut, and told from others by a hash."""
    end = f"-seed{seed}"
    if len(name) + len(end) > _LONGEST:
        end = f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}{end}"
    return name[: _LONGEST - len(end)] + end


def _with_one_source(config: Config, first: int, console: Console, flags: TrainFlags) -> Config:
    """The configuration with ``latest`` replaced by one run for all seeds.

    Without it, the second seed would find the first seed's run behind ``latest``.
    """
    begun = None
    if flags.resume:
        of_first = _of_seed(config, first)
        begun = newest_run("train", of_first.name, out=of_first.out)
    return pinned(config, begun, console.info)


def _spread(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Metric -> mean, median, standard deviation and values over seeds, of the best checkpoints.

    A metric that no run has measured is left out.
    """
    spread = {}
    for metric in _METRICS:
        values = [answer["best"][metric] for answer in answers if answer["best"][metric] is not None]
        if values:
            spread[metric] = {
                "mean": statistics.fmean(values),
                "median": statistics.median(values),
                "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "values": values,
            }
    return spread


def _table(spread: dict[str, dict[str, Any]]) -> Table:
    shares = ("mean", "median", "std")
    rows = [
        [metric, *(f"{of[name]:.2%}" for name in shares), str(len(of["values"]))]
        for metric, of in spread.items()
    ]
    return Table("validation over seeds", ["metric", *shares, "seeds"], rows)
