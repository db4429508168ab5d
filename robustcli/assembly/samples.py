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
    return split, choose(split, n=config.n, first=config.first, seed=setting.config.seed)


def choose(split: Split, *, n: int | None, first: int | None, seed: int) -> Tensor:
    """Positions to measure: a seeded stratified sample of n, the first `first`, or all."""
    if n is not None and first is not None:
        raise UsageError(
            "--n and --first exclude each other", hint="--n samples by class, --first keeps the stored order"
        )
    size = len(split)
    if not size:
        raise DataError("the chosen split is empty", hint="choose another eval.split")
    if first is not None:
        return torch.arange(min(first, size))
    return stratified(split.labels, min(n or size, size), seed)


def split_of(data: DataBundle, name: str) -> Split:
    """train, val or test. Raises DataError when it is empty."""
    split: Split = getattr(data, name)
    if not len(split):
        hint = "set data.val_fraction > 0" if name == "val" else ""
        raise DataError(f"the {name} split of {data.name} is empty", hint=hint)
    return split
