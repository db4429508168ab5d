"""A split that stays on the disk: batches decoded by DataLoader workers."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustcli.core.copies import sent
from robustcli.data.images import Decoder, Pixels, planes, quiet_pillow
from robustcli.data.split import Batch, Paths, named_files, rows_and_ids, unit
from robustcli.data.workers import Workers
from robustcli.errors import DataError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
            path = os.path.join(self.decoder.root, relative)
            try:
                out[place] = planes(self.decoder(relative), self.shape, path)
            except DataError as error:
                return _Fault(error.what, error.where, error.hint, error.code)
        return out


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(parent: int, forked: bool, _: int) -> None:
    # Ctrl-C goes to the whole group: the main process decides, workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent, forked)
    quiet_pillow()


def _end_with(parent: int, forked: bool) -> None:
    """Have this worker end when its parent does, also where that has happened already.

    A forked worker holds its parent's sockets. While it outlives a killed rank, the other ranks see no loss.
    torch looks only every 5 s, and only for the parent that it finds at its first look: after an early death
    that is process 1, which lives for ever.

    Args:
        parent: number of the process that reads the batches, noted before this one was started.
        forked: started by that process itself; else by a server of multiprocessing.
    """
    process = multiprocessing.parent_process()
    if not forked:
        if process is not None:
            threading.Thread(target=_end_after, args=(process,), daemon=True).start()
        return
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


class StreamSplit:
    """A split read from files batch by batch; the answer does not depend on the number of workers.

    Args:
        paths: file names relative to the decoder's root, as bytes (one numpy array, so that forked workers
            share it).
        decoder: file -> pixels.
        labels: int64 [N].
        classes: names of the K classes.
        shape: (C, H, W) of every image; another one is an error when it is read.
        workers: processes, >= 0; 0 decodes in this process.
        timeout: seconds to wait for one batch, > 0.
        rows, ids: int64 [N], as in MemorySplit.
    """

    def __init__(
        self,
        paths: Paths,
        decoder: Decoder,
        labels: Tensor,
        classes: tuple[str, ...],
        shape: tuple[int, int, int],
        *,
        workers: int = 2,
        timeout: float = 120.0,
        rows: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout must be > 0, got {timeout}")
        self._files = _Files(paths, decoder, shape)
        self.labels, self.classes, self.shape = labels, classes, shape
        self.workers, self.timeout = workers, timeout
        self._rows, self.ids = rows_and_ids(labels, rows, ids)

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """See `Split.stream`.

        Raises:
            DataError: an unreadable image (its path); E-WORKER when a worker dies or hangs (the ids of the
                batch).
        """
        with closing(self._decoded(batches)) as decoded:
            for positions, item in zip(batches, decoded, strict=True):
                if isinstance(item, _Fault):
                    raise DataError(item.what, where=item.where, hint=item.hint, code=item.code)
                x = unit(sent(torch.from_numpy(item), device), device)
                yield x, sent(self.labels[positions], device), sent(self.ids[positions], device)

    def _decoded(self, batches: Sequence[Tensor]) -> Generator[Pixels | _Fault]:
        """uint8 [B, C, H, W] of each batch, decoded here, or by workers that end with this generator."""
        workers = min(self.workers, len(batches))
        rows = [self._rows[positions].tolist() for positions in batches]
        if not workers:
            yield from map(self._files.__getitem__, rows)
            return
        running = Workers(self._loader(rows, workers), self.timeout)
        try:
            for positions in batches:
                yield running.next(f"sample ids {_shortened(self.ids[positions])}")
        finally:
            running.close()

    def _loader(self, rows: list[list[int]], workers: int) -> DataLoader[Any]:
        """One item per batch.

        Rows and pixels travel through the pipe, without tensors or file descriptors, so /dev/shm does not
        matter.
        """
        return DataLoader(
            self._files,
            sampler=rows,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=partial(
                _start_worker, os.getpid(), multiprocessing.get_start_method() != "forkserver"
            ),
            # Otherwise the loader draws its base seed from the global state.
            generator=torch.Generator().manual_seed(0),
        )

    def files(self, positions: Tensor) -> list[str | None]:
        """See `Split.files`."""
        return named_files(self._files.paths, self._rows[positions])

    def subset(self, positions: Tensor) -> StreamSplit:
        """See `Split.subset`; the list of files is shared."""
        return StreamSplit(
            self._files.paths,
            self._files.decoder,
            self.labels[positions],
            self.classes,
            self.shape,
            workers=self.workers,
            timeout=self.timeout,
            rows=self._rows[positions],
            ids=self.ids[positions],
        )


def _shortened(ids: Tensor) -> str:
    """The first eight, and how many there are when there are more."""
    shown = ", ".join(str(i) for i in ids[:8].tolist())
    if len(ids) <= 8:
        return shown
    return f"{shown}, … ({len(ids)})"
