"""How many images a batch and a shard have. A batch grows, and it is halved when memory runs out.

No verdict depends on it.
"""

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
_SHARDS, _LEAST, _MOST = 32, 4, 128


def shard_size(n: int) -> int:
    """Samples per shard where the user says nothing: about 32 shards, of 4 to 128 samples each.

    A function of n alone: an evaluation that was stopped goes on with any number of processes, and each of
    them has several shards to take.
    """
    return min(_MOST, max(_LEAST, -(-n // _SHARDS)))


class BatchSizer:
    """The size of the next batch.

    Args:
        size: a fixed number of images, or None. None begins at 256. On a GPU it then doubles while a batch
            takes less than 40 % of the memory. On a CPU larger batches are not faster.
        device: where batches run.
    """

    def __init__(self, size: int | None, device: torch.device) -> None:
        self.size, self._device = size or _FIRST, device
        self._growing = size is None and device.type == "cuda"
        if self._growing:
            torch.cuda.reset_peak_memory_stats(device)

    def grow(self) -> None:
        """Call after a batch that fitted: the next one may be larger."""
        if not self._growing or self.size >= _LARGEST:
            return
        peak = torch.cuda.max_memory_allocated(self._device)
        self._growing = peak < 0.4 * torch.cuda.get_device_properties(self._device).total_memory
        if self._growing:
            self.size *= 2

    def halve(self) -> None:
        """Call after a batch that did not fit: the next one has half the size, and none grows again."""
        self.size, self._growing = max(1, self.size // 2), False


class Attempt:
    """What `halving` yields. failed: its block ran out of memory."""

    failed = False


@contextmanager
def halving(sizer: BatchSizer, rows: int) -> Iterator[Attempt]:
    """Catch the out-of-memory error of a batch of `rows` images and halve the sizer.

    The out-of-memory error of a single image is raised.
    """
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
    sizer: BatchSizer | None = None,
    unit: int = 1,
) -> Iterator[T]:
    """work(x, y, ids) of each batch of samples; a batch that runs out of memory is repeated in halves.

    Args:
        split, positions: the samples, int64 [n].
        device: where they are worked on.
        size: images per batch, or None for an automatic size, see `BatchSizer`.
        work: x [B, C, H, W] in [0, 1], y and ids int64 [B] -> result. It must leave no trace when it runs out
            of memory, because the same samples come again.
        say: told of each halving.
        sizer: of earlier calls, which goes on in place of a new one.
        unit: so many samples in a row stay together where a batch has room for them.

    Raises what `work` raises. An out-of-memory error is raised only when a single image does not fit.
    """
    sizer, start = sizer or BatchSizer(size, device), 0
    while start < len(positions):
        before = rows = sizer.size
        if rows >= unit:
            rows -= rows % unit
        parts = positions[start:].split(rows)
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
