"""What is counted between two records: images, time, and time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Rates since the last `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._seconds = self._waited = 0.0
        self._images = 0

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """One training step on that many images of all ranks; it counts when it ends well."""
        began = time.perf_counter()
        yield
        self._images += images
        self._seconds += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The part of a step in which there is nothing to compute on."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @property
    def rate(self) -> float:
        """Images per second."""
        return self._images / max(self._seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        """Time spent waiting for data / time, in [0, 1]."""
        return self._waited / max(self._seconds, 1e-9)
