"""One part of a data set (train, val or test): the protocol, and the one that lives in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor, Tensor]


class Split(Protocol):
    """Images with labels; every sample has an id that batching, order and sub-setting never change.

    labels: int64 [N] on the CPU.  ids: int64 [N], the index in the stored split (paths sorted).
    classes: their names, class k is classes[k].  shape: (C, H, W).
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
        """For each int64 vector of POSITIONS in this split: x float32 [B, C, H, W] in [0, 1], y int64 [B], ids int64 [B], on the device."""
        ...

    def subset(self, positions: Tensor) -> Split:
        """The samples at these positions, in this order, with the ids they have here."""
        ...


def unit(pixels: Tensor, device: torch.device) -> Tensor:
    """k / 255 for uint8 pixels, correctly rounded on every device; float pixels as float32.

    A Python scalar divisor becomes a multiplication by 1/255 on CUDA, off by one ulp; a divisor on the device does not.
    """
    moved = pixels.to(device, non_blocking=True)
    if pixels.dtype != torch.uint8:
        return moved.to(torch.float32)
    return moved.to(torch.float32).div_(torch.full((), 255.0, device=device))


class Store:
    """The pixels of a data set, shared by its splits and sub-sets, copied to a device once."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self._moved: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """uint8 or float [M, C, H, W] on the device. The copy is kept; only the last device's."""
        if device == self.pixels.device:
            return self.pixels
        if device not in self._moved:
            self._moved = {device: self.pixels.to(device)}
        return self._moved[device]


class MemorySplit:
    """A split whose pixels [N, C, H, W] (uint8, or float in [0, 1]) stay in memory: x = u8 / 255.

    Args:
        pixels: the stored images, or a `Store` shared with other splits.
        labels: int64 [N].
        classes: names of the K classes.
        rows: int64 [N], row of each sample in the store; None when they are the same.
        ids: int64 [N], sample ids; None for 0 … N - 1.
    """

    def __init__(self, pixels: Tensor | Store, labels: Tensor, classes: tuple[str, ...], *, rows: Tensor | None = None, ids: Tensor | None = None) -> None:
        self.store = pixels if isinstance(pixels, Store) else Store(pixels)
        self.labels, self.classes = labels, classes
        self.ids = torch.arange(len(labels)) if ids is None else ids
        self._rows = torch.arange(len(labels)) if rows is None else rows
        if not len(self.labels) == len(self.ids) == len(self._rows):
            raise ValueError(f"labels, ids and rows differ in length: {len(self.labels)}, {len(self.ids)}, {len(self._rows)}")
        self._moved: dict[torch.device, Batch] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.store.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """See `Split.stream`. Gathers on the device: no worker, no copy but of the batch's positions."""
        pixels = self.store.on(device)
        if device not in self._moved:
            self._moved = {device: (self._rows.to(device), self.labels.to(device), self.ids.to(device))}
        rows, labels, ids = self._moved[device]
        for positions in batches:
            chosen = positions.to(device)
            yield unit(pixels[rows[chosen]], device), labels[chosen], ids[chosen]

    def raw(self, positions: Tensor) -> Tensor:
        """Pixels as they are stored, [B, C, H, W], on the CPU."""
        return self.store.pixels[self._rows[positions]]

    def subset(self, positions: Tensor) -> MemorySplit:
        """See `Split.subset`; the pixels are shared."""
        return MemorySplit(self.store, self.labels[positions], self.classes, rows=self._rows[positions], ids=self.ids[positions])
