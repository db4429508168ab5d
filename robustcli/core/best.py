"""The memory of a search: the best point of each row, and which rows have fallen.

"Best" is meant as the attacker sees it. A row falls when the watch confirms a success on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.core.geometry import Ball, column

#: (row numbers int64 [R], candidates [R, C, H, W]) -> bool [R]: those that lie in the ball and succeed with
#: the original fp32 model, too.
Watch = Callable[[Tensor, Tensor], Tensor]


class BestPoints:
    """The best point per row: a success before a failure, then the one of larger loss.

    With `closest_in` a failure is never kept, and the success nearest to the clean point is the best.

    Args:
        points: pixels [B, C, H, W], what each row holds before the first point is considered.
        origin: clean pixels [B, C, H, W] in [0, 1], from which `closest_in` measures.
        closest_in: the ball that measures distances, or None. A success outside it may be kept, but it is
            not shown to the watch.
        watch: confirms successes, or None, and then no row falls. A fallen row keeps the point with which
            it fell.
    """

    def __init__(self, points: Tensor, origin: Tensor, closest_in: Ball | None, watch: Watch | None) -> None:
        self._numbers = torch.arange(len(points), device=points.device)
        self.points = points.clone()
        self.fallen = torch.zeros_like(self._numbers, dtype=torch.bool)
        #: Whether the best point of each row is a success.
        self.hits = torch.zeros_like(self.fallen)
        self._values = torch.full((len(points),), float("-inf"), device=points.device)
        self._origin, self._ball, self._watch = origin, closest_in, watch

    def consider(
        self, index: Tensor | slice, x_adv: Tensor, hits: Tensor, loss: Tensor, *, success: bool = True
    ) -> bool:
        """Keep each point that beats the best of its row so far, and each success that the watch confirms.

        Args:
            index: the rows of the points, int64 [R]; slice(None) for all rows.
            x_adv: one point for each of these rows, pixels [R, C, H, W].
            hits: bool [R], which points are a success.
            loss: [R]. A point of a non-finite loss is kept only if the watch confirms it. With `closest_in`
                the loss is not read.
            success: False where it is known that none of `hits` is true: then nobody has to look.

        Returns:
            Whether a row fell in this call.
        """
        rows = self._numbers[index]
        best_hits, best, fallen = self.hits[index], self._values[index], self.fallen[index]
        if self._ball is None:
            value, candidates = loss, hits
            better = (hits & ~best_hits) | ((hits == best_hits) & (value > best))
        else:
            origin = self._origin[index]
            value = -self._ball.distance(origin, x_adv).to(loss.device, loss.dtype)
            candidates = hits & self._ball.contains(origin, x_adv)
            better = hits & (~best_hits | (value > best))
        better &= ~fallen & torch.isfinite(value)
        confirmed = rows[:0]
        if success:
            confirmed = self._confirmed(rows, x_adv, candidates & ~fallen)
        better[confirmed] = True
        self._keep(rows, x_adv, hits, value, better)
        return bool(len(confirmed))

    def consider_turns(
        self,
        rows: Tensor,
        tries: Tensor,
        hits: Tensor,
        loss: Tensor,
        inside: Tensor,
        *,
        success: bool | None = None,
    ) -> tuple[int, bool]:
        """`consider` k points for each of A different rows, turn by turn; a row that falls takes no more.

        Only successes need a turn each, where a watch may confirm them or distances count. Elsewhere the best
        of the k points is what k turns would leave.

        Args:
            rows: int64 [A].
            tries: pixels [A, k, C, H, W], in the order of their turns.
            hits, loss: as for `consider`, [A, k].
            inside: bool [A, k], the points that count; the first of each row does.
            success: whether a point that counts is a success, where that is known; None to look.

        Returns:
            How many points counted and came too late, because their rows had fallen before; and whether a
            row fell in this call.
        """
        if self._ball is not None or self._watch is not None:
            if success is None:
                success = bool((hits & inside).any())
            if success:
                return self._one_by_one(rows, tries, hits, loss, inside)
        if self._ball is not None:
            return 0, False  # it keeps successes alone
        eligible = inside & torch.isfinite(loss)
        eligible &= hits == (hits & eligible).any(1, keepdim=True)
        best = torch.where(eligible, loss, float("-inf")).argmax(1)  # of equal ones the first
        picked = torch.arange(len(rows), device=rows.device), best
        return 0, self.consider(rows, tries[picked], hits[picked], loss[picked], success=False)

    def _one_by_one(
        self, rows: Tensor, tries: Tensor, hits: Tensor, loss: Tensor, inside: Tensor
    ) -> tuple[int, bool]:
        """`consider_turns` with a turn for each of the k points."""
        late, fell = 0, False
        for turn in range(tries.shape[1]):
            fallen = self.fallen[rows]
            late += int((inside[:, turn] & fallen).sum())
            now = (inside[:, turn] & ~fallen).nonzero()[:, 0]
            if len(now):
                fell |= self.consider(rows[now], tries[now, turn], hits[now, turn], loss[now, turn])
        return late, fell

    def _confirmed(self, rows: Tensor, x_adv: Tensor, candidates: Tensor) -> Tensor:
        """The places int64 [n], among the R points, of those that the watch confirms; their rows fall.

        rows: int64 [R], row of each point. candidates: bool [R], the points that the watch is shown.
        """
        if self._watch is None:
            return rows[:0]
        shown = candidates.nonzero()[:, 0]
        if not len(shown):
            return shown
        confirmed = shown[self._watch(rows[shown], x_adv[shown])]
        self.fallen[rows[confirmed]] = True
        return confirmed

    def _keep(self, rows: Tensor, x_adv: Tensor, hits: Tensor, values: Tensor, better: Tensor) -> None:
        """Make the points that are `better`, bool [R] of the R points, the best of their rows.

        A CPU looks which ones these are: most tries change no row's best. A device would have to be waited
        for to know that, so there all rows are written.
        """
        values = values.to(self._values.dtype)
        if better.device.type == "cpu":
            kept = better.nonzero()[:, 0]
            if not len(kept):
                return
            rows, x_adv, hits, values = rows[kept], x_adv[kept], hits[kept], values[kept]
        else:
            x_adv = torch.where(column(better, x_adv), x_adv, self.points[rows])
            hits = torch.where(better, hits, self.hits[rows])
            values = torch.where(better, values, self._values[rows])
        self.points[rows], self.hits[rows], self._values[rows] = x_adv, hits, values
