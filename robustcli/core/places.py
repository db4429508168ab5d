"""How many searches of how many rows share a batch, and what happens where such a batch has no room."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from robustcli.core.oracle import Oracle
from robustcli.errors import out_of_memory

#: (few, tensors of all rows in play) -> the tensors after the searches of the first `few` rows. The rows that
#: waited come first in the answer. So after as many rows as there are the order is as before.
Search = Callable[..., tuple[Tensor, ...]]

_FEW = {"cpu": 16}  # rows that are searched on in several places: more of them would fill a batch alone
_FEW_ELSEWHERE = 128
_SLOPES = 2**20  # pixels of such a batch: gradients keep all activations


class Places:
    """Shares a batch among several searches of each row.

    How many do so does not depend on the number of rows: what a row goes through must not depend on who else
    is in its batch. Only where memory runs out there are fewer.

    Args:
        oracle: of the rows in play.
        x: their pixels [R, C, H, W].
    """

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        self._oracle = oracle
        self._pixels = max(1, math.prod(x.shape[1:]))
        self._few = _FEW.get(x.device.type, _FEW_ELSEWHERE)
        self._most = 1
        if oracle.steady:
            self._most = max(1, _SLOPES // self._pixels)

    def at_once(self, left: int) -> int:
        """How many of `left` searches of each row go into one batch, >= 1."""
        return max(1, min(left, self._most))

    def rows(self, count: int) -> int:
        """Of how many rows that many searches each share a batch, >= 1."""
        return max(1, min(self._few, _SLOPES // (count * self._pixels)))

    def search(self, count: int, search: Search, *tensors: Tensor) -> tuple[bool, tuple[Tensor, ...]]:
        """(done, tensors): `search` for all rows in play, a few at a time where `count` > 1.

        Where memory runs out fewer rows are tried, and at last none: then done is False, and the caller asks
        `at_once` again. What was searched already gives the same points again.
        """
        waiting = len(tensors[0])
        while waiting:
            few = waiting
            if count > 1:
                few = min(few, self.rows(count))
            try:
                tensors = search(few, *tensors)
            except (RuntimeError, MemoryError) as error:
                if count == 1 or not out_of_memory(error):
                    raise
                before = len(tensors[0])
                tensors = self._oracle.recall(*tensors)
                waiting -= before - len(tensors[0])
                if few == 1:
                    self._most = count // 2
                    return False, tensors
                self._few = few // 2
            else:
                waiting -= few
        return True, tensors
