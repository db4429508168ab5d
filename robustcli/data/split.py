"""One part of a data set (train, val or test): the protocol, and the one that lives in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustcli.core.copies import sent
from robustcli.data.ahead import ahead

PARTS = ("train", "val", "test")
Batch = tuple[Tensor, Tensor, Tensor]
Paths = npt.NDArray[np.bytes_]


class Split(Protocol):
    """Images with labels; every sample has an id that batching, order and sub-setting never change.

    labels: int64 [N] on the CPU.
    ids: int64 [N], the index in the stored split (paths sorted).
    classes: their names, class k is classes[k].
    shape: (C, H, W).
    """

    @property
    def labels(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """One batch for each int64 vector of POSITIONS in this split.

        A batch is x float32 [B, C, H, W] in [0, 1], y int64 [B] and ids int64 [B], all on the device.
        """
        ...

    def files(self, positions: Tensor) -> list[str | None]:
        """Path of each image at these positions, below the root of the data set; None for data in arrays."""
        ...

    def subset(self, positions: Tensor) -> Split:
        """The samples at these positions, in this order, with the ids they have here."""
        ...


def unit(pixels: Tensor, device: torch.device) -> Tensor:
    """k / 255 for uint8 pixels, correctly rounded on every device; float pixels as float32.

    A Python scalar divisor becomes a multiplication by 1/255 on CUDA, off by one ulp; a divisor on the device
    does not.
    """
    moved = pixels.to(device, non_blocking=True)
    if pixels.dtype != torch.uint8:
        return moved.to(torch.float32)
    return moved.to(torch.float32).div_(torch.full((), 255.0, device=device))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process may still allocate on a CUDA device; None for other devices."""
    if device.type != "cuda":
        return None
    return (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )


class Store:
    """The pixels of a data set, shared by its splits and sub-sets.

    They are copied to a device once, if they leave half of its free memory.

    Args:
        pixels: uint8 or float [M, C, H, W].
        mapped: they lie in a file, read where they are used and never copied as a whole.

    Attributes:
        paths: of the image files that the pixels come from, as bytes [M]; None where there are none.
    """

    def __init__(self, pixels: Tensor, *, mapped: bool = False) -> None:
        self.pixels, self.mapped = pixels, mapped
        self.paths: Paths | None = None
        self._moved: dict[torch.device, Tensor | None] = {}

    def on(self, device: torch.device) -> Tensor | None:
        """uint8 or float [M, C, H, W] on the device; None when they stay where they are.

        The copy on the device asked for last is kept.
        """
        if self.mapped:
            return None
        if device == self.pixels.device:
            return self.pixels
        if device not in self._moved:
            free = free_bytes(device)
            fits = free is None or self.pixels.nbytes <= free // 2
            self._moved = {device: self.pixels.to(device) if fits else None}
        return self._moved[device]


def _gathered(source: Tensor, rows: Tensor, pinned: bool) -> Tensor:
    """source[rows] in memory of its own, page-locked when asked for."""
    out = torch.empty((len(rows), *source.shape[1:]), dtype=source.dtype, pin_memory=pinned)
    return torch.index_select(source, 0, rows, out=out)


def rows_and_ids(labels: Tensor, rows: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Stored row and id of each sample, 0 to N - 1 where None is given.

    Raises:
        ValueError: the lengths differ.
    """
    if rows is None:
        rows = torch.arange(len(labels))
    if ids is None:
        ids = torch.arange(len(labels))
    if not len(labels) == len(ids) == len(rows):
        raise ValueError(f"labels, ids and rows differ in length: {len(labels)}, {len(ids)}, {len(rows)}")
    return rows, ids


def named_files(paths: Paths | None, rows: Tensor) -> list[str | None]:
    """The path of each row, int64 [n]; None for each without `paths`."""
    if paths is None:
        return [None] * len(rows)
    return [os.fsdecode(path) for path in paths[rows.numpy()]]


class MemorySplit:
    """A split whose pixels [N, C, H, W] (uint8, or float in [0, 1]) lie in one array: x = u8 / 255.

    Args:
        pixels: the stored images, or a `Store` shared with other splits.
        labels: int64 [N].
        classes: names of the K classes.
        rows: int64 [N], row of each sample in the store; None for 0 to N - 1.
        ids: int64 [N], sample ids; None for 0 to N - 1.
    """

    def __init__(
        self,
        pixels: Tensor | Store,
        labels: Tensor,
        classes: tuple[str, ...],
        *,
        rows: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        self.store = pixels if isinstance(pixels, Store) else Store(pixels)
        self.labels, self.classes = labels, classes
        self._rows, self.ids = rows_and_ids(labels, rows, ids)
        self._moved: dict[torch.device, Batch] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.store.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """See `Split.stream`.

        Pixels on the device are gathered there, others on the CPU, two batches ahead. The bits are the same.
        """
        pixels = self.store.on(device)
        if pixels is None:
            yield from self._fed(batches, device)
            return
        if device not in self._moved:
            self._moved = {device: (self._rows.to(device), self.labels.to(device), self.ids.to(device))}
        rows, labels, ids = self._moved[device]
        for positions in batches:
            chosen = sent(positions, device)
            yield unit(pixels[rows[chosen]], device), labels[chosen], ids[chosen]

    def _fed(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """Batches that a thread gathers on the CPU, two ahead.

        CUDA copies them from pinned memory while the device still works on the batch before.
        """
        pinned = device.type == "cuda"

        def gather(positions: Tensor) -> Batch:
            return (
                _gathered(self.store.pixels, self._rows[positions], pinned),
                _gathered(self.labels, positions, pinned),
                _gathered(self.ids, positions, pinned),
            )

        with closing(ahead(gather, batches)) as gathered:
            for pixels, labels, ids in gathered:
                yield (
                    unit(pixels, device),
                    labels.to(device, non_blocking=pinned),
                    ids.to(device, non_blocking=pinned),
                )

    def raw(self, positions: Tensor) -> Tensor:
        """Pixels as they are stored, [B, C, H, W], on the CPU."""
        return self.store.pixels[self._rows[positions]]

    def files(self, positions: Tensor) -> list[str | None]:
        """See `Split.files`."""
        return named_files(self.store.paths, self._rows[positions])

    def subset(self, positions: Tensor) -> MemorySplit:
        """See `Split.subset`; the pixels are shared."""
        return MemorySplit(
            self.store,
            self.labels[positions],
            self.classes,
            rows=self._rows[positions],
            ids=self.ids[positions],
        )
