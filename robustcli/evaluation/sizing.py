"""How many images fit into a batch: found by growing, halved when memory runs out, never visible in a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
            peak, total = torch.cuda.max_memory_allocated(self._device), torch.cuda.get_device_properties(self._device).total_memory
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
    except torch.OutOfMemoryError:
        if rows <= 1:
            raise
        attempt.failed = True
        sizer.size = min(sizer.size, rows)
        sizer.halve()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
