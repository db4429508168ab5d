"""The generators that a whole process shares, kept as they are while code of others draws from them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.RLock()  # the whole process has one of each


@contextmanager
def generators_as_before() -> Iterator[None]:
    """On exit the CPU generators of torch, numpy and random are as before, after an error too.

    Threads come in one after another.
    """
    import numpy  # noqa: PLC0415  (here: the trackers are named before anything heavy is loaded)
    import torch  # noqa: PLC0415

    with _one_at_a_time:
        before = torch.random.get_rng_state(), random.getstate(), numpy.random.get_state()
        try:
            yield
        finally:
            torch.random.set_rng_state(before[0])
            random.setstate(before[1])
            numpy.random.set_state(before[2])
