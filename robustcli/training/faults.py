"""Faults that stop a step before anything has changed, and how all ranks learn of one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from robustcli.errors import Interrupted, NumericsError, out_of_memory
from robustcli.runtime.distributed import Ranks

#: Faults that leave the run as it was: a stop request, no memory, numbers that are not finite.
FAULTS: tuple[type[BaseException], ...] = (Interrupted, torch.OutOfMemoryError, NumericsError)


@dataclass
class Caught:
    """The fault that ended a `caught` block; None where there was none."""

    fault: BaseException | None = None


@contextmanager
def caught() -> Iterator[Caught]:
    """Catch and keep one of `FAULTS` that is raised inside; `raise_everywhere` then tells the other ranks.

    Memory runs out with different errors (see `out_of_memory`). Each is kept as torch.OutOfMemoryError.
    """
    result = Caught()
    try:
        yield result
    except FAULTS as error:
        result.fault = error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        result.fault = torch.OutOfMemoryError(str(error))


@contextmanager
def shared_faults(ranks: Ranks) -> Iterator[None]:
    """One of `FAULTS` that any rank meets inside is raised on every rank at the end of the block."""
    with caught() as block:
        yield
    raise_everywhere(ranks, block.fault)


def raise_everywhere(ranks: Ranks, fault: BaseException | None) -> None:
    """Raise `fault`, or the fault of another rank, on all ranks; return where no rank has one.

    Without this call a rank that leaves a step would make the others wait for ever in the next collective.
    Where ranks have met different kinds of faults, all raise the kind that comes first in `FAULTS`. Cost: one
    small all-reduce.
    """
    anywhere = ranks.agree(*(isinstance(fault, kind) for kind in FAULTS))
    if fault is not None and not isinstance(fault, FAULTS):
        raise fault
    for kind, raised in zip(FAULTS, anywhere, strict=True):
        if raised and isinstance(fault, kind):
            raise fault
        if raised:
            raise _elsewhere(kind)


def _elsewhere(kind: type[BaseException]) -> BaseException:
    """What this rank raises for a fault of another one."""
    if kind is Interrupted:
        return Interrupted("another rank was asked to stop", signum=signal.SIGTERM)
    if kind is NumericsError:
        error = NumericsError(
            "the loss of another rank is not finite",
            hint="lower the learning rate, or clip with train.grad_clip",
        )
        error.elsewhere = True
        return error
    return torch.OutOfMemoryError("another rank ran out of memory")
