"""What a forward pass costs on this machine, for one process and for several at once."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from robustcli.assembly.setting import Setting
from robustcli.core.modes import frozen
from robustcli.runtime.device import threads, threads_each


def seconds_per_forward(setting: Setting, model: nn.Module, batch: int, dtype: torch.dtype) -> float:
    """Seconds of one forward pass of one image, measured on random pixels in batches of `batch`."""
    x = torch.rand(batch, *setting.data.shape, device=setting.device)
    with (
        frozen(model),
        torch.no_grad(),
        torch.autocast(setting.device.type, dtype=dtype, enabled=dtype is not torch.float32),
    ):
        model(x)
        began = time.perf_counter()
        rounds = 0
        while rounds < 2 or (time.perf_counter() - began < 0.5 and rounds < 50):
            model(x)
            rounds += 1
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
    return (time.perf_counter() - began) / (rounds * batch)


def shared_seconds(
    setting: Setting, model: nn.Module, batch: int, dtype: torch.dtype, processes: int
) -> float:
    """Seconds of one forward pass of one image where so many processes work at once, each at its own batch.

    On a CPU each has its share of the threads, and is timed with it.
    """
    before = threads()
    if setting.device.type == "cpu":
        threads(setting.config.threads or threads_each(processes))
    try:
        return seconds_per_forward(setting, model, batch, dtype) / processes
    finally:
        threads(before)


def processes_of(setting: Setting, processes: int, n: int, size: int) -> dict[str, Any]:
    """The lines of a plan about many processes: how many, with what, and the shards that they share."""
    if processes == 1:
        return {}
    each = "one GPU each"
    if setting.device.type == "cpu":
        each = f"threads each: {setting.config.threads or threads_each(processes)}"
    shards = -(-n // size)
    return {"processes": f"{processes} ({each})", "shards": f"{shards} of {min(size, n)} images at most"}
