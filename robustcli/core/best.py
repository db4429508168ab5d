"""What is remembered of a search: the best point of each row, and which rows have fallen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.core.geometry import Ball

#: (row numbers int64 [R], candidates [R, C, H, W]) -> bool [R]: those that lie in the ball and succeed with
#: the original fp32 model, too.
Watch = Callable[[Tensor, Tensor], Tensor]


class BestPoints:
    """The best point met per row: a success before a failure, then the one of larger loss.

    With `closest_in` only successes are kept, and the nearest one to the clean point is the best.

    Args:
        points: where the memory begins [B, C, H, W], pixels; a row that no later point beats keeps its point.
        origin: clean pixels [B, C, H, W] in [0, 1], from which `closest_in` measures.
        closest_in: the ball that measures distances, or None; a success outside it is not shown to the watch.
        watch: confirms successes; a confirmed row falls, and keeps the point with which it fell.
    """

    def __init__(self, points: Tensor, origin: Tensor, closest_in: Ball | None, watch: Watch | None) -> None:
        self._numbers = torch.arange(len(points), device=points.device)
        self.points = points.clone()
        self.fallen = torch.zeros_like(self._numbers, dtype=torch.bool)
        self._hits = torch.zeros_like(self.fallen)
        self._values = torch.full((len(points),), float("-inf"), device=points.device)
        self._origin, self._ball, self._watch = origin, closest_in, watch

    def consider(self, index: Tensor | slice, x_adv: Tensor, hits: Tensor, loss: Tensor) -> bool:
        """Keep each point that beats the best of its row so far; let the watch confirm successes.

        Args:
            index: which rows are asked about, int64 [R]; slice(None) where these are all rows.
            x_adv: their points [R, C, H, W].
            hits: bool [R], which points are a success.
            loss: [R]; a point of a non-finite loss is not kept unless the watch confirms it.

        Returns:
            Whether a row has fallen.
        """
        rows = self._numbers[index]
        best_hits, best, fallen = self._hits[index], self._values[index], self.fallen[index]
        if self._ball is None:
            value, candidates = loss, hits
            better = (hits & ~best_hits) | ((hits == best_hits) & (value > best))
        else:
            origin = self._origin[index]
            value = -self._ball.distance(origin, x_adv).to(loss.device, loss.dtype)
            candidates = hits & self._ball.contains(origin, x_adv)
            better = hits & (~best_hits | (value > best))
        better &= ~fallen & torch.isfinite(value)
        confirmed = self._confirmed(rows, x_adv, candidates & ~fallen)
        better[confirmed] = True
        self._keep(rows, x_adv, hits, value, better.nonzero()[:, 0])
        return bool(len(confirmed))

    def _confirmed(self, rows: Tensor, x_adv: Tensor, candidates: Tensor) -> Tensor:
        """Which of the candidates, bool [R], the watch confirms: int64 [n]. Their rows have fallen now."""
        if self._watch is None:
            return rows[:0]
        shown = candidates.nonzero()[:, 0]
        if not len(shown):
            return shown
        confirmed = shown[self._watch(rows[shown], x_adv[shown])]
        self.fallen[rows[confirmed]] = True
        return confirmed

    def _keep(self, rows: Tensor, x_adv: Tensor, hits: Tensor, values: Tensor, kept: Tensor) -> None:
        if not len(kept):  # most tries change no row's best
            return
        moved = rows[kept]
        self.points[moved] = x_adv[kept]
        self._hits[moved], self._values[moved] = hits[kept], values[kept].to(self._values.dtype)
