"""How many images a batch has: it grows, and is halved when memory runs out. No verdict depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from robustcli.data.split import Split
from robustcli.errors import out_of_memory

T = TypeVar("T")

_FIRST, _LARGEST = 256, 4096


class BatchSizer:
    """The size of the next batch.

    Args:
        size: a fixed number of images, or None: begin at 256 and, on a GPU, double while a batch took less
            than 40 % of its memory. CPU caches gain nothing beyond 256.
        device: where batches run.
    """

    def __init__(self, size: int | None, device: torch.device) -> None:
        self.size, self._device = size or _FIRST, device
        self._growing = size is None and device.type == "cuda"
        if self._growing:
            torch.cuda.reset_peak_memory_stats(device)

    def grow(self) -> None:
        """After a batch that fitted."""
        if not self._growing or self.size >= _LARGEST:
            return
        peak = torch.cuda.max_memory_allocated(self._device)
        self._growing = peak < 0.4 * torch.cuda.get_device_properties(self._device).total_memory
        if self._growing:
            self.size *= 2

    def halve(self) -> None:
        """After a batch that did not fit; from now on the size only falls."""
        self.size, self._growing = max(1, self.size // 2), False


class Attempt:
    """What `halving` yields. failed: whether its block ran out of memory."""

    failed = False


@contextmanager
def halving(sizer: BatchSizer, rows: int) -> Iterator[Attempt]:
    """Catch the out-of-memory error of a batch and halve the sizer. That of a single row passes on."""
    attempt = Attempt()
    try:
        yield attempt
    except (RuntimeError, MemoryError) as error:
        if rows <= 1 or not out_of_memory(error):
            raise
        attempt.failed = True
        sizer.size = min(sizer.size, rows)
        sizer.halve()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def in_batches(
    split: Split,
    positions: Tensor,
    device: torch.device,
    size: int | None,
    work: Callable[[Tensor, Tensor, Tensor], T],
    say: Callable[[str], None],
) -> Iterator[T]:
    """work(x, y, ids) of each batch of samples; a batch that runs out of memory comes again in halves.

    Args:
        split, positions, device: the samples at these places, int64 [n], are worked on there.
        size: images per batch, or None: as many as pay off, see `BatchSizer`.
        work: must leave no trace when it runs out of memory, for the same samples come again.
        say: told of each halving.

    Raises what `work` raises, its out-of-memory error only when a single image does not fit.
    """
    sizer, start = BatchSizer(size, device), 0
    while start < len(positions):
        before, parts = sizer.size, positions[start:].split(sizer.size)
        stream = iter(split.stream(list(parts), device))
        for part in parts:
            with halving(sizer, len(part)) as attempt:
                outcome = work(*next(stream))
            if attempt.failed:
                say(f"out of memory with {len(part)} images: going on with {sizer.size}")
                break
            yield outcome
            start += len(part)
            sizer.grow()
            if sizer.size != before:
                break
