"""Which samples a verb measures."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.assembly.setting import Setting
from robustcli.data.bundle import DataBundle
from robustcli.data.sampling import stratified
from robustcli.data.split import Split
from robustcli.errors import DataError, UsageError


def samples(setting: Setting) -> tuple[Split, Tensor]:
    """The split that is measured, and the positions in it that the configuration chooses."""
    config = setting.config.eval
    split = split_of(setting.data, config.split)
    seed = setting.config.seed
    return split, choose(split, n=config.n, first=config.first, seed=seed, skip=config.skip)


def choose(split: Split, *, n: int | None, first: int | None, seed: int, skip: int = 1) -> Tensor:
    """Positions to measure: a seeded stratified sample of n, the first `first`, or all.

    skip: of every `skip`-th image in stored order, as published tables of certificates choose them.
    """
    if n is not None and first is not None:
        raise UsageError(
            "--n and --first exclude each other", hint="--n samples by class, --first keeps the stored order"
        )
    size = len(split)
    if not size:
        raise DataError("the chosen split is empty", hint="choose another eval.split")
    every = torch.arange(0, size, skip)
    if first is not None:
        return every[:first]
    return every[stratified(split.labels[every], min(n or len(every), len(every)), seed)]


def split_of(data: DataBundle, name: str) -> Split:
    """train, val or test. Raises DataError when it is empty."""
    split: Split = getattr(data, name)
    if not len(split):
        hint = "set data.val_fraction > 0" if name == "val" else ""
        raise DataError(f"the {name} split of {data.name} is empty", hint=hint)
    return split
