"""The training batches of one process, in the order of the run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from robustcli.data.mixture import epoch_batches, epoch_size
from robustcli.data.split import Split
from robustcli.errors import DataError
from robustcli.runtime.distributed import Ranks

#: Pixels [B, C, H, W] in [0, 1], labels int64 [B], sample ids int64 [B].
Images: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Feed:
    """This rank's share of each batch. The order is a function of (seed, epoch).

    Args:
        train: the training split.
        batch_size: images of all ranks in a step; fewer where the split is smaller.
        seed: of the order.
        ranks: the processes that share each batch.
        device: where the batches go.

    Raises DataError: no images, or a batch that the ranks cannot share.
    """

    def __init__(self, train: Split, batch_size: int, seed: int, ranks: Ranks, device: torch.device) -> None:
        self.train, self.seed, self.ranks, self.device = train, seed, ranks, device
        self.batch_size = min(batch_size, epoch_size(train))
        if not self.batch_size:
            raise DataError("the training split is empty")
        if self.batch_size % ranks.world:
            raise DataError(
                f"a batch of {self.batch_size} images cannot be shared by {ranks.world} processes",
                hint="choose train.batch_size accordingly",
            )
        self.steps_per_epoch = epoch_size(train) // self.batch_size

    def stream(self, epoch: int, position: int = 0) -> Iterator[Images]:
        """The batches of one epoch, from batch number `position` on."""
        batches = epoch_batches(self.train, self.batch_size, self.seed, epoch)[position:]
        own = [batch.chunk(self.ranks.world)[self.ranks.rank] for batch in batches]
        return self.train.stream(own, self.device)

    def endless(self) -> Iterator[Images]:
        """The batches of all epochs, one after the other."""
        for epoch in itertools.count():
            yield from self.stream(epoch)
