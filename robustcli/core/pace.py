"""How far a search asks ahead: several questions of each row go into one batch."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from robustcli.core.padding import bucket

_MOST = 64  # questions of a row in one batch
# Pixels of all questions in a batch, unless the rows alone have more: memory, and little more to gain.
_PIXELS = 2**22
_MEMORY = 0.9  # what a round keeps of the counts before it
_AGEING = 1.02  # by how much the best time of a batch rises each time it is seen: machines slow down
_RARE = 1e-4  # no acceptance rate is taken for smaller
_TRIED = 3  # rounds that try out sizes
_FIXED = 8.0  # rows whose cost each batch adds, where the clock must not choose


class Pace:
    """Chooses k, how many questions of each row go into one batch. No answer depends on it.

    With acceptance rate p a row gets (1 - (1 - p)^k) / p answers that count from k questions. k is the number
    with the most of them per second; a batch of n rows takes a + b n seconds, fitted to the times of batches
    of this search. Where PyTorch has to be deterministic a is that of 8 rows: batches of another size may
    round otherwise.

    Args:
        x: pixels [R, C, H, W] of the rows at the start.
        steady: false keeps k = 1, see `core.oracle`.
    """

    def __init__(self, x: Tensor, *, steady: bool) -> None:
        self._limit = _MOST if steady and len(x) else 1
        self._room = max(len(x), _PIXELS // max(1, math.prod(x.shape[1:])))
        self._taken, self._counted = 1.0, 2.0
        self._seconds: dict[int, float] = {}
        self._timed = not torch.are_deterministic_algorithms_enabled()
        self._rounds, self._k, self._size, self._began = 0, 1, 0, 0.0

    def ahead(self, rows: int, left: int) -> int:
        """k for `rows` rows, at most `left` >= 1. The clock runs until `saw`."""
        most = max(1, min(self._limit, left, self._room // rows))
        if self._rounds < _TRIED:  # what do larger batches cost here?
            k = min(most, max(1 << self._rounds, (bucket(1) << self._rounds) // rows))
        else:
            k = self._best(rows, most)
        self._rounds += 1
        self._k, self._size, self._began = k, bucket(rows * k), time.perf_counter()
        return k

    def _best(self, rows: int, most: int) -> int:
        """The k, up to `most`, that promises the most answers that count per second."""
        base, each = self._costs()
        rate = min(1.0, max(self._taken / self._counted, _RARE))
        gains = [(1 - (1 - rate) ** k) / (base + each * bucket(rows * k)) for k in range(1, most + 1)]
        return gains.index(max(gains)) + 1

    def saw(self, counted: int, taken: int) -> None:
        """The round is over: how many of its answers counted, and how many of these changed the search."""
        self._taken = _MEMORY * self._taken + taken
        self._counted = _MEMORY * self._counted + counted
        spent = time.perf_counter() - self._began
        self._seconds[self._size] = min(_AGEING * self._seconds.get(self._size, math.inf), spent)

    def failed(self) -> bool:
        """The batch had no room in memory: whether a smaller one is left to try."""
        self._limit = max(1, self._k // 2)
        return self._k > 1

    def _costs(self) -> tuple[float, float]:
        """(a, b), b > 0, of the line a + b n through the times of all sizes."""
        sizes, times = list(self._seconds), list(self._seconds.values())
        if not self._timed or len(sizes) < 2:
            return _FIXED, 1.0
        middle, level = sum(sizes) / len(sizes), sum(times) / len(times)
        spread = sum((n - middle) ** 2 for n in sizes)
        each = sum((n - middle) * t for n, t in zip(sizes, times, strict=True)) / spread
        each = max(each, 0.05 * level / middle)
        return max(0.0, level - each * middle), each
