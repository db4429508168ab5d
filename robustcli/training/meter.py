"""The speed of a training: images, time, and time spent waiting for data, between two records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Counts since the last `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Set all counts to 0."""
        self._seconds = self._waited = 0.0
        self._images = 0

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Time one training step on `images` images of all ranks. A step that raises is not counted."""
        began = time.perf_counter()
        yield
        self._images += images
        self._seconds += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for the next batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @property
    def rate(self) -> float:
        """Images per second."""
        return self._images / max(self._seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        """Share of the time that was spent waiting for data, in [0, 1]."""
        return self._waited / max(self._seconds, 1e-9)
