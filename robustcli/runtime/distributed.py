"""Many processes, one training: the rank of this process, and what ranks exchange.

A lost peer is one line with exit 8.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from robustcli.errors import PeerError, UsageError
from robustcli.runtime.device import cuda_count

START_SECONDS, STEADY_SECONDS = 600, 120


class Ranks:
    """The processes of one training: rank r of `world`. ``Ranks()`` is a process alone: its calls are free.

    All ranks must make the same calls in the same order. `agree` and `mean`, which every step makes, wait 120
    s for a silent peer; `gather`, `broadcast` and `barrier`, before which rank 0 may be writing, wait 600 s.
    A peer that died is noticed at once. Every call raises PeerError E-PEER (exit 8): then this rank must save
    nothing.
    """

    def __init__(self, rank: int = 0, world: int = 1, *, steady: Any = None) -> None:
        self.rank, self.world, self._steady = rank, world, steady
        self._lost = False

    @property
    def main(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """a_i = max over ranks of flag_i: for each flag, whether it is True on any rank; one all-reduce."""
        if self.world == 1 or not flags:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        with self._watched("agree"):
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._steady)
        return tuple(bool(vote) for vote in votes.tolist())

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """t = (1 / world) * sum over ranks of t, in place; bitwise the same on all ranks.

        tensors: floating point, any shapes, dtypes and devices; every rank gives the same list. They travel
        as one flat tensor per dtype and device. Raises ValueError: a dtype without a mean.
        """
        groups = _by_type(tensors)
        if self.world == 1:
            return
        for group in groups:
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            with self._watched("mean"):
                dist.all_reduce(flat, group=self._steady)
            flat /= self.world
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def gather(self, value: Any) -> list[Any]:
        """[v_0, ..., v_{world-1}] on every rank, for plain JSON data; tuples come back as lists."""
        mine = _encode(value)
        if self.world == 1:
            return [_decode(mine)]
        with self._watched("gather"):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([mine.numel()]))
            longest = max(int(size) for size in sizes)
            padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
            dist.all_gather(padded, torch.cat([mine, mine.new_zeros(longest - mine.numel())]))
        return [_decode(data[: int(size)]) for data, size in zip(padded, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """v_0, the value of rank 0, on every rank, for plain JSON data. The values of others are ignored."""
        data = torch.zeros(0, dtype=torch.uint8)
        if self.main:
            data = _encode(value)
        if self.world > 1:
            with self._watched("broadcast"):
                size = torch.tensor([data.numel()])
                dist.broadcast(size, 0)
                if not self.main:
                    data = data.new_zeros(int(size))
                dist.broadcast(data, 0)
        return _decode(data)

    def barrier(self) -> None:
        """Return when all ranks have come here."""
        if self.world > 1:
            with self._watched("barrier"):
                dist.all_reduce(torch.zeros(1))  # a CPU tensor: dist.barrier would wait for the GPU too

    def close(self) -> None:
        """Leave the group; peers that wait for this rank get their PeerError. A second call does nothing."""
        # After a peer was lost NCCL would wait for it; the end of the process frees everything.
        if self.world > 1 and dist.is_initialized() and (not self._lost or dist.get_backend() == "gloo"):
            dist.destroy_process_group()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *ending: object) -> None:
        self.close()

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        if self._lost:
            raise PeerError(f"rank {self.rank} of {self.world} lost a peer before", where=what)
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            raise _peer_error(self.rank, self.world, what, error) from error


def solo() -> Ranks:
    """A process alone."""
    return Ranks()


def join(device: torch.device) -> Ranks:
    """The group that the launcher's environment names; `solo` without one.

    The environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. ROBUSTCLI_PG_TIMEOUT is a number of seconds
    that replaces both times of waiting: 600 s until all ranks have met, 120 s afterwards.

    device: of this rank. A CUDA device becomes the current one, with nccl for its tensors; all else goes
    through gloo.

    Raises UsageError: an impossible environment or device; PeerError: not all ranks came.
    """
    world = _number("WORLD_SIZE", "1")
    if world == 1:
        return solo()
    rank = _rank_below(world)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"no training with many processes on {device.type}", where="device", hint="use cpu or cuda"
        )
    start, steady = _patience()
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _told_on_stderr():
        try:
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=start)
            group = dist.new_group(timeout=steady)
        except (RuntimeError, ValueError) as error:
            raise _peer_error(rank, world, "joining", error) from error
        ranks = Ranks(rank, world, steady=group)
        ranks.barrier()
        ranks.agree(False)
    return ranks


@contextmanager
def _told_on_stderr() -> Iterator[None]:
    """What Gloo says of its connections on stdout goes to stderr: stdout is for results."""
    try:
        stdout = os.dup(1)
    except OSError:  # closed
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def local_device(name: str) -> str:
    """The device of this rank: auto and cuda are ``cuda:LOCAL_RANK`` with CUDA, auto is cpu without.

    In a process alone, and for any other name, `name` itself. Raises UsageError: LOCAL_RANK is no number.
    """
    if _number("WORLD_SIZE", "1") == 1 or name not in ("auto", "cuda"):
        return name
    if cuda_count():
        return f"cuda:{_number('LOCAL_RANK', '0')}"
    if name == "auto":
        return "cpu"
    return name


def _rank_below(world: int) -> int:
    """The rank of this process; the address at which ranks meet must be set, too. Raises UsageError."""
    rank = _number("RANK")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _environment_error(f"{name} is not set")
    if not 0 <= rank < world:
        raise _environment_error(f"RANK={rank} is not below WORLD_SIZE={world}")
    return rank


def _number(name: str, default: str = "") -> int:
    """A whole number of the environment. Raises UsageError: not a number, or not set and no default."""
    text = os.environ.get(name, default)
    if not text:
        raise _environment_error(f"{name} is not set")
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise _environment_error(f"{name}={text!r} is not a number")
    return int(text)


def _environment_error(what: str) -> UsageError:
    return UsageError(what, where="environment", hint="start with torchrun, or with --nproc")


def _patience() -> list[timedelta]:
    """How long to wait: until all ranks have met, and afterwards."""
    text = os.environ.get("ROBUSTCLI_PG_TIMEOUT", "")
    if text and not re.fullmatch(r"[1-9]\d{0,4}", text, re.ASCII):
        raise UsageError(
            f"ROBUSTCLI_PG_TIMEOUT={text!r} is not a number of seconds from 1 to 99999", where="environment"
        )
    return [timedelta(seconds=int(text or seconds)) for seconds in (START_SECONDS, STEADY_SECONDS)]


def _by_type(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """The tensors in groups of one dtype and device. Raises ValueError: a dtype without a mean."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"mean over ranks needs floating point tensors, not {tensor.dtype}")
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    return groups.values()


def _encode(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(data: Tensor) -> Any:
    return json.loads(data.numpy().tobytes())


def _peer_error(rank: int, world: int, what: str, error: Exception) -> PeerError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    reason = re.sub(r"^\[\S+:\d+\]:?\s*", "", first.strip()).partition(". ")[0][:200].rstrip(".")
    return PeerError(
        f"rank {rank} of {world} lost a peer in {what}: {reason}",
        hint="nothing was saved after the last checkpoint; go on with --resume",
    )
