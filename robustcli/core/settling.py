"""A search on a copy of a model, whose answer the model itself settles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.core.best import BestPoints
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, margin
from robustcli.core.oracle import Keep, Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier

_CLOSE = 0.04  # of the largest logit: the lead below which a search in bf16 missed what one in fp32 found


class SettlingOracle(Oracle):
    """An oracle without a watch for callers who want the worst point of every row; no row leaves.

    The clean point is met last, and only by rows that no other point broke: one broken elsewhere is not
    asked for it. The last point is asked of the model, which settles it and costs no pass more than asking
    the copy. `result` then asks the model for the successes that it has not seen yet. Where the model
    refuses one, a last point that it confirmed is the answer.

    Args:
        model, x, criterion, rng, stop: as of `Oracle`.
        exact: the original model, pixels -> logits without a gradient; None where `model` is it.
        closest_in: the ball of a minimal-norm attack, whose answer is the closest success; else None.
        blind: as of `Oracle`.
    """

    def __init__(
        self,
        model: Classifier,
        x: Tensor,
        criterion: Criterion,
        *,
        rng: RowRandom,
        exact: Callable[[Tensor], Tensor] | None = None,
        closest_in: Ball | None = None,
        stop: Callable[[], None] | None = None,
        blind: bool = False,
    ) -> None:
        keep: Keep = "last" if closest_in is None else "closest"
        super().__init__(model, x, criterion, rng=rng, keep=keep, stop=stop, ball=closest_in, blind=blind)
        self._exact, self._lazy = exact, closest_in is None
        self._low = isinstance(model, SearchTwin) and model.low
        #: int64 [n]: after `result`, the rows that should be searched again on the model: those whose best
        #: point is a success of the copy alone, and those that a copy in low precision may just have missed.
        self.doubtful = self._rows[:0]
        if closest_in is None:
            self._best = BestPoints(x, x, None, None)
            if isinstance(model, SearchTwin):
                self._asker.scorer = model.scores

    def result(self, x_adv: Tensor) -> Tensor:
        """The worst point of each row, [B, C, H, W], detached; x_adv, [B, C, H, W], is met."""
        best, point = self._best, x_adv.detach()
        assert best is not None
        if not len(point):
            return best.points
        seen, close = torch.zeros_like(best.hits), torch.zeros_like(best.hits)
        sure = seen  # rows whose last point is a success of the model
        if self._exact is None or not self._lazy:
            super().result(x_adv)
        elif self._scored is not x_adv:
            self._check()
            logits = self._exact(point)
            self._consider(point, self._joint(logits))
            sure = self.hit(logits)
            seen = sure & (best.points == point).flatten(1).all(1)
            close = self._close(self._joint(logits), self.y)
        elif self._low:  # the copy alone has seen it, and may just have missed
            close = self._settled(best)
        if self._lazy:
            self._meet_clean(best)
        if self._exact is not None:
            false = self._refused(best, best.hits & ~seen)
            best.points[false & sure] = point[false & sure]
            self.doubtful = ((false & ~sure) | (close & ~best.hits)).nonzero()[:, 0]
        return best.points

    def _settled(self, best: BestPoints) -> Tensor:
        """bool [B]: which rows the model, asked about the best points that broke nothing, is `_close` on."""
        rows, close = (~best.hits).nonzero()[:, 0], torch.zeros_like(best.hits)
        if self._exact is not None and len(rows):
            self._check()
            logits = self.criterion.joint(self._exact(best.points[rows]), rows)
            self._meet(best, rows, best.points[rows], logits)
            close[rows] = self._close(logits, self.criterion.y[rows])
        return close

    def _close(self, logits: Tensor, y: Tensor) -> Tensor:
        """bool [R]: whether the model's logits [R, K] are so near to a success that rounding may tell."""
        if not self._low:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        return margin(logits, y) > -_CLOSE * logits.abs().amax(1)

    def _meet_clean(self, best: BestPoints) -> None:
        """Meet the clean points of the rows that no point broke."""
        rows = (~best.hits).nonzero()[:, 0]
        if not len(rows):
            return
        if self._clean is None:
            self._check()
            self.forward_rows += len(rows)
            with torch.no_grad():
                logits = self.criterion.joint(
                    self._asker.model(self._origin[rows]).to(best.points.dtype), rows
                )
        else:
            logits = self._clean[rows]
        self._meet(best, rows, self._origin[rows], logits)

    def _meet(self, best: BestPoints, rows: Tensor, points: Tensor, logits: Tensor) -> None:
        """Meet a point [C, H, W] of each of these rows, int64 [R], whose logits [R, K] are known."""
        best.consider(rows, points, self.criterion.hit(logits, rows), self._loss(None, rows)(logits))

    def _refused(self, best: BestPoints, asked: Tensor) -> Tensor:
        """bool [B]: which of the best points of the rows `asked`, bool [B], are no success of the model."""
        rows, refused = asked.nonzero()[:, 0], torch.zeros_like(asked)
        if self._exact is not None and len(rows):
            self._check()
            refused[rows] = ~self.criterion.hit(self._exact(best.points[rows]), rows)
        return refused
