"""How many images fit into a batch: found by growing, halved when memory runs out, never visible in a verdict."""

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
        size: a fixed number of images, or None: begin at 256 and, on a GPU, double while a batch took less than 40 % of its memory.
            CPU caches gain nothing beyond 256.
        device: where batches run.
    """

    def __init__(self, size: int | None, device: torch.device) -> None:
        self.size, self._device = size or _FIRST, device
        self._growing = size is None and device.type == "cuda"
        if self._growing:
            torch.cuda.reset_peak_memory_stats(device)

    def grow(self) -> None:
        """After a batch that fitted."""
        if self._growing and self.size < _LARGEST:
            peak, total = (
                torch.cuda.max_memory_allocated(self._device),
                torch.cuda.get_device_properties(self._device).total_memory,
            )
            self._growing = peak < 0.4 * total
            self.size *= 2 if self._growing else 1

    def halve(self) -> None:
        """After a batch that did not fit; from now on the size only falls."""
        self.size, self._growing = max(1, self.size // 2), False


class Attempt:
    """Whether the block ran out of memory."""

    failed = False


@contextmanager
def halving(sizer: BatchSizer, rows: int) -> Iterator[Attempt]:
    """Catch an out-of-memory error of a batch with more than one row and halve the sizer; one row's error passes on."""
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
    """work(x, y, ids) of the samples at `positions` (int64 [n]), batch by batch; one that memory does not suffice for is worked on in halves.

    Args:
        size: images per batch, or None: as many as pay off, see `BatchSizer`.
        work: must leave no trace when it runs out of memory: the same samples come again.
        say: told of each halving.

    Raises what `work` raises; its out-of-memory error when a single image does not fit.
    """
    sizer, start = BatchSizer(size, device), 0
    while start < len(positions):
        before, parts = sizer.size, positions[start:].split(sizer.size)
        stream = iter(split.stream(list(parts), device))
        for part in parts:
            with halving(sizer, len(part)) as attempt:
                found = work(*next(stream))
            if attempt.failed:
                say(f"out of memory with {len(part)} images: going on with {sizer.size}")
                break
            yield found
            start += len(part)
            sizer.grow()
            if sizer.size != before:
                break
