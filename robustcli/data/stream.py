"""A split that stays on the disk: batches decoded by DataLoader workers."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustcli.data.images import Decoder, Pixels, planes, quiet
from robustcli.data.split import Batch, unit
from robustcli.data.workers import Workers
from robustcli.errors import DataError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
Paths = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class _Fault:
    """A DataError on its way from a worker (torch would rebuild it from its traceback's text)."""

    what: str
    where: str
    hint: str
    code: str


class _Files(Dataset[Any]):
    """rows [B] -> uint8 [B, C, H, W] or a _Fault."""

    def __init__(self, paths: Paths, decoder: Decoder, shape: tuple[int, int, int]) -> None:
        self.paths, self.decoder, self.shape = paths, decoder, shape

    def __getitem__(self, rows: list[int]) -> Pixels | _Fault:
        out = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for place, row in enumerate(rows):
            relative = os.fsdecode(self.paths[row])
            try:
                out[place] = planes(
                    self.decoder(relative), self.shape, os.path.join(self.decoder.root, relative)
                )
            except DataError as error:
                return _Fault(error.what, error.where, error.hint, error.code)
        return out


def _same(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    # Ctrl-C goes to the whole group: the main process decides, workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    quiet()


def _end_with_parent() -> None:
    """A forked worker holds its parent's sockets: while it outlives a killed rank (torch looks every 5 s), the other ranks see no loss."""
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None or os.getppid() != parent.pid:
        return  # elsewhere, or started by a server that holds no sockets
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it died in between
        os._exit(1)


class StreamSplit:
    """A split read from files batch by batch; the answer does not depend on the number of workers.

    Args:
        paths: file names relative to the decoder's root, as bytes (one numpy array, so that forked workers share it).
        decoder: file -> pixels.
        labels: int64 [N].
        classes: names of the K classes.
        shape: (C, H, W) of every image; another one is an error when it is read.
        workers: processes, >= 0; 0 decodes in this process.
        timeout: seconds to wait for one batch, > 0.
        rows, ids: int64 [N], as in MemorySplit.
    """

    def __init__(
        self, paths: Paths, decoder: Decoder, labels: Tensor, classes: tuple[str, ...], shape: tuple[int, int, int],
        *, workers: int = 2, timeout: float = 120.0, rows: Tensor | None = None, ids: Tensor | None = None,
    ) -> None:  # fmt: skip
        if timeout <= 0:
            raise ValueError(f"timeout must be > 0, got {timeout}")
        self._files = _Files(paths, decoder, shape)
        self.labels, self.classes, self.shape = labels, classes, shape
        self.workers, self.timeout = workers, timeout
        self.ids = torch.arange(len(labels)) if ids is None else ids
        self._rows = torch.arange(len(labels)) if rows is None else rows
        if not len(self.labels) == len(self.ids) == len(self._rows):
            raise ValueError(
                f"labels, ids and rows differ in length: {len(self.labels)}, {len(self.ids)}, {len(self._rows)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """See `Split.stream`.

        Raises:
            DataError: an unreadable image (its path); E-WORKER when a worker dies or hangs (the ids of the batch).
        """
        workers = min(self.workers, len(batches))
        rows = [self._rows[positions].tolist() for positions in batches]
        running = Workers(self._loader(rows, workers), self.timeout) if workers else None
        try:
            for positions, chosen in zip(batches, rows, strict=True):
                ids = self.ids[positions]
                item = (
                    running.next(f"sample ids {_some(ids)}") if running is not None else self._files[chosen]
                )
                if isinstance(item, _Fault):
                    raise DataError(item.what, where=item.where, hint=item.hint, code=item.code)
                pixels = torch.from_numpy(item)
                yield (
                    unit(pixels.pin_memory() if device.type == "cuda" else pixels, device),
                    self.labels[positions].to(device),
                    ids.to(device),
                )
        finally:
            if running is not None:
                running.close()

    def _loader(self, rows: list[list[int]], workers: int) -> DataLoader[Any]:
        """One item per batch. Rows and pixels travel through the pipe (no tensors, no file descriptors), so /dev/shm does not matter."""
        return DataLoader(
            self._files,
            sampler=rows,
            batch_size=None,
            collate_fn=_same,
            num_workers=workers,
            worker_init_fn=_start_worker,
            generator=torch.Generator().manual_seed(
                0
            ),  # otherwise the loader draws its base seed from the global state
        )

    def subset(self, positions: Tensor) -> StreamSplit:
        """See `Split.subset`; the list of files is shared."""
        return StreamSplit(
            self._files.paths, self._files.decoder, self.labels[positions], self.classes, self.shape,
            workers=self.workers, timeout=self.timeout, rows=self._rows[positions], ids=self.ids[positions],
        )  # fmt: skip


def _some(ids: Tensor) -> str:
    shown = ", ".join(str(i) for i in ids[:8].tolist())
    return shown + (f", … ({len(ids)})" if len(ids) > 8 else "")
