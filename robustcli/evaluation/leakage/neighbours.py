"""The nearest images of a long stream to each of many images, with memory for one tile of distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_TILE = 2**22  # distances at a time: 16 MiB


class Nearest:
    """The k nearest of all vectors shown so far.

    Args:
        queries: float32 [n, v, d]: v views of each image, of which the nearest counts.
        k: how many are kept.

    Attributes:
        distance: float32 [n, k], Euclidean, in order; inf where fewer were shown.
        position: int64 [n, k], as `show` counts them; -1 where fewer were shown.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        n = len(queries)
        self._queries, self._norms = queries, queries.square().sum(2)
        self._squares = torch.full((n, k), torch.inf, device=queries.device)
        self.position = torch.full((n, k), -1, dtype=torch.int64, device=queries.device)

    @property
    def distance(self) -> Tensor:
        return self._squares.clamp_min(0).sqrt()

    def show(self, vectors: Tensor, first: int) -> None:
        """More vectors [b, d]; the first of them has the position `first`."""
        norms, rows = vectors.square().sum(1), max(1, _TILE // max(1, len(vectors)))
        for start in range(0, len(self._queries), rows):
            part = slice(start, start + rows)
            squares = self._squares_to(vectors, norms, part)
            near, place = squares.topk(min(self._squares.shape[1], len(vectors)), largest=False)
            both = torch.cat([self._squares[part], near], 1)
            positions = torch.cat([self.position[part], place + first], 1)
            best, chosen = both.topk(self._squares.shape[1], largest=False)
            self._squares[part], self.position[part] = best, positions.gather(1, chosen)

    def _squares_to(self, vectors: Tensor, norms: Tensor, part: slice) -> Tensor:
        """float32 [rows, b]: the least squared distance over the views."""
        least: Tensor | None = None
        for view in range(self._queries.shape[1]):
            cross = self._queries[part, view] @ vectors.T
            squares = self._norms[part, view, None] + norms - 2 * cross
            least = squares if least is None else torch.minimum(least, squares)
        assert least is not None
        return least


def nearest(
    queries: Tensor,
    batches: Iterator[tuple[Tensor, int]],
    vectors: Callable[[Tensor], Tensor],
    k: int,
    halves: bool = False,
) -> list[Nearest]:
    """The nearest of a stream of images; with `halves` those of images at even and at odd positions apart.

    Args:
        queries: as of `Nearest`.
        batches: (images [b, C, H, W], position of the first).
        vectors: images -> float32 [b, d].
    """
    found = [Nearest(queries, k) for _ in range(1 + halves)]
    for x, first in batches:
        shown = vectors(x).to(queries.device)
        if not halves:
            found[0].show(shown, first)
            continue
        for parity in (0, 1):
            start = (parity - first) % 2
            found[parity].show(shown[start::2], (first + start) // 2)
    return found
