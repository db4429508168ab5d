"""What may stop a step before anything has changed, and how all ranks learn of it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from robustcli.errors import Interrupted, NumericsError, out_of_memory
from robustcli.runtime.distributed import Ranks

T = TypeVar("T")

#: Faults that leave the run as it was: a stop request, no memory, numbers that are not finite.
FAULTS = (Interrupted, torch.OutOfMemoryError, NumericsError)


@dataclass
class Caught:
    """What happened in a `caught` block."""

    fault: BaseException | None = None


@contextmanager
def caught() -> Iterator[Caught]:
    """Keep one of FAULTS that is raised inside, for `settle`; every way in which memory runs out is torch.OutOfMemoryError then."""
    found = Caught()
    try:
        yield found
    except FAULTS as error:
        found.fault = error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        found.fault = torch.OutOfMemoryError(str(error))


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` gives; a fault that any rank meets in it is raised on all of them, see `settle`."""
    with caught() as met:
        found = work()
    settle(ranks, met.fault)
    return found


def settle(ranks: Ranks, fault: BaseException | None) -> None:
    """Raise `fault` here, or what another rank met, on every rank alike; returns when no rank has any. One small all-reduce.

    Without it a rank that leaves a step would let the others wait in the next collective for ever.
    """
    met = ranks.agree(*(isinstance(fault, kind) for kind in FAULTS))
    if fault is not None and not isinstance(fault, FAULTS):
        raise fault
    for kind, anywhere in zip(
        FAULTS, met, strict=True
    ):  # the same kind on every rank, whatever else one of them met
        if anywhere:
            raise fault if fault is not None and isinstance(fault, kind) else _elsewhere(kind)


def _elsewhere(kind: type[BaseException]) -> BaseException:
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
