from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.data.images import Decoder, Pixels
from robustcli.data.split import MemorySplit
from robustcli.data.stream import StreamSplit, _end_with
from robustcli.errors import DataError

CPU = torch.device("cpu")
COUNT = 24


@pytest.fixture
def split(tmp_path: Path, picture) -> Callable[..., StreamSplit]:
    for k in range(COUNT):
        picture(k).save(tmp_path / f"{k:02d}.png")
    paths = np.array([os.fsencode(f"{k:02d}.png") for k in range(COUNT)])

    def make(decoder: Decoder | None = None, **options) -> StreamSplit:
        return StreamSplit(
            paths,
            decoder or Decoder(str(tmp_path)),
            torch.arange(COUNT) % 3,
            ("a", "b", "c"),
            (3, 8, 8),
            **options,
        )

    return make


@dataclass(frozen=True)
class Trap(Decoder):
    """Does something bad on one file, in the worker."""

    victim: str = "09.png"
    act: str = "kill"

    def __call__(self, relative: str) -> Pixels:
        if relative == self.victim:
            if self.act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.act == "exit":
                os._exit(3)
            elif self.act == "raise":
                raise MemoryError("no room")
            elif self.act == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.act == "hang":
                time.sleep(60)
        return super().__call__(relative)


def batches(*sizes: int) -> list[torch.Tensor]:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    return list(torch.split(order[: sum(sizes)], list(sizes)))


def test_workers_do_not_change_the_batches(split) -> None:
    wanted = batches(5, 1, 8, 7, 3)
    alone = list(split(workers=0).stream(wanted, CPU))
    for workers in (1, 2):
        for one, other in zip(alone, split(workers=workers).stream(wanted, CPU), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    x, y, ids = alone[0]
    assert x.shape == (5, 3, 8, 8) and x.dtype == torch.float32 and y.dtype == ids.dtype == torch.int64
    assert torch.equal(ids, wanted[0]) and torch.equal(y, wanted[0] % 3)


def test_no_batches(split) -> None:
    assert list(split(workers=2).stream([], CPU)) == []


def test_subset_keeps_ids_and_pixels(split) -> None:
    part = split(workers=0).subset(torch.tensor([7, 3, 11])).subset(torch.tensor([2, 0]))
    ((x, y, ids),) = part.stream([torch.tensor([0, 1])], CPU)
    ((whole, _, _),) = split(workers=0).stream([torch.tensor([11, 7])], CPU)
    assert ids.tolist() == [11, 7] and y.tolist() == [2, 1] and torch.equal(x, whole) and len(part) == 2


def test_leaving_early_leaves_no_process(split) -> None:
    before = set(multiprocessing.active_children())
    stream = split(workers=2).stream(batches(4, 4, 4, 4), CPU)
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    stream.close()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_file_is_a_data_error_with_its_path(split, tmp_path: Path, workers: int) -> None:
    (tmp_path / "05.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"not a readable image.*05\.png") as caught:
        list(split(workers=workers).stream([torch.tensor([1, 5, 2])], CPU))
    assert caught.value.code == "E-IMAGE" and caught.value.hint and not multiprocessing.active_children()


@pytest.mark.parametrize("act", ["kill", "exit"])
def test_dead_worker(split, tmp_path: Path, act: str) -> None:
    running = split(Trap(str(tmp_path), act=act), workers=2, timeout=500).stream(
        [torch.tensor([k, k + 1]) for k in range(0, COUNT, 2)], CPU
    )
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(running)
    error = caught.value
    assert error.code == "E-WORKER" and error.exit_code == 3 and "a data worker died" in error.what
    assert "sample ids" in error.where and "data.workers" in error.hint
    assert time.monotonic() - started < 100, "a death is seen at once, not at the timeout"
    assert not multiprocessing.active_children()


def test_what_a_worker_raises_is_not_its_death(split, tmp_path: Path) -> None:
    """Workers end with the thread that forked them, and that thread has nothing left to do."""
    for _ in range(3):
        with pytest.raises(MemoryError, match="no room"):
            list(
                split(Trap(str(tmp_path), act="raise"), workers=2, timeout=500).stream(
                    [torch.tensor([k, k + 1]) for k in range(0, COUNT, 2)], CPU
                )
            )
        assert not multiprocessing.active_children()


@pytest.mark.parametrize("act", ["stop", "hang"])
def test_silent_worker(split, tmp_path: Path, act: str) -> None:
    with pytest.raises(DataError) as caught:
        list(split(Trap(str(tmp_path), act=act), workers=1, timeout=1.5).stream([torch.tensor([8, 9])], CPU))
    error = caught.value
    assert (
        error.code == "E-WORKER"
        and "nothing for 1.5 s" in error.what
        and error.where == "sample ids 8, 9"
        and "data.timeout" in error.hint
    )
    assert not multiprocessing.active_children()


def test_death_outside_the_wait_does_not_hit_the_consumer(split) -> None:
    """torch's own handler would raise in the middle of the training step."""
    handler = signal.getsignal(signal.SIGCHLD)
    stream = split(workers=2, timeout=500).stream([torch.tensor([k]) for k in range(COUNT)], CPU)
    before = set(multiprocessing.active_children())
    next(stream)
    victim = next(p for p in multiprocessing.active_children() if p not in before)
    os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + 50
    while victim.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)  # the consumer's work: no exception here
    assert victim.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match="a data worker died"):
        for _ in stream:
            pass
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("early", [False, True], ids=["at work", "while a worker starts"])
def test_workers_end_with_a_killed_process(split, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """They hold its sockets. torch, which looks every few seconds, is made to look never."""
    monkeypatch.setattr("torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL", 1e6)
    readable, writable = os.pipe()
    parent = os.fork()
    if not parent:
        try:
            if early:
                monkeypatch.setattr("robustcli.data.stream._end_with", partial(_outlive, writable))
            stream = split(workers=2).stream(batches(4, 4, 4, 4), CPU)
            next(stream)
            os.write(writable, "".join(f"{p.pid} " for p in multiprocessing.active_children()).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writable)
    os.waitpid(parent, 0)
    told = b""
    end = time.monotonic() + 60
    while time.monotonic() < end and select.select([readable], [], [], 60)[0]:
        chunk = os.read(readable, 100)
        if not chunk:  # none of them lives to hold the other end
            break
        told += chunk
    os.close(readable)
    workers = [int(pid) for pid in told.split()]
    while any(_running(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.01)
    alive = [pid for pid in workers if _running(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert workers and not alive


def _outlive(writable: int, parent: int, forked: bool) -> None:
    """The first look of a worker whose parent is dead: it says who it is, kills the parent, and waits."""
    os.write(writable, f"{os.getpid()} ".encode())
    with contextlib.suppress(ProcessLookupError):  # another worker was first
        os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.001)
    _end_with(parent, forked)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("options", [{"timeout": 0}, {"ids": torch.arange(3)}])
def test_wrong_arguments(split, options) -> None:
    with pytest.raises(ValueError):
        split(**options)


def test_memory_split_is_exact_and_shares_pixels() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    memory = MemorySplit(pixels, torch.arange(64) % 2, ("a", "b"))
    ((x, y, ids),) = memory.stream([torch.arange(64)], CPU)
    assert torch.equal(x.flatten(), torch.tensor([k / 255 for k in range(256)], dtype=torch.float64).float())
    part = memory.subset(torch.tensor([9, 4]))
    assert part.store is memory.store and part.ids.tolist() == [9, 4] and part.labels.tolist() == [1, 0]
    ((again, _, _),) = part.stream([torch.tensor([1])], CPU)
    assert torch.equal(again[0], x[4]) and y.dtype == ids.dtype == torch.int64
    with pytest.raises(ValueError):
        MemorySplit(pixels, torch.arange(3), ("a",), rows=torch.arange(2))


def test_stream_does_not_change_the_stored_pixels() -> None:
    memory = MemorySplit(
        torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3, dtype=torch.int64),
        ("a",),
    )
    before = memory.store.pixels.clone()
    ((x, _, _),) = memory.stream([torch.arange(3)], CPU)
    x.zero_()
    assert torch.equal(memory.store.pixels, before)
