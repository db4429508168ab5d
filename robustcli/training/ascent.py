"""The inner half of a training step: search the ball for points where the inner loss is high."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustcli.core.edge import hides_bounds, opened
from robustcli.core.geometry import Ball, column
from robustcli.core.losses import Criterion, RowLoss, bind_inner
from robustcli.core.memory import Memory
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier
from robustcli.training.forward import Forward
from robustcli.training.settings import StepSettings, Threat

_ALL = slice(None)
#: The setting `attack_bn` -> how `frozen` names it.
_BATCH_NORM: dict[str, Literal["eval", "batch"]] = {"eval": "eval", "train": "batch"}


class Found(NamedTuple):
    """What an attack found: x_adv, and where it asked for its first gradient, both [B, C, H, W]; its ball.

    `began` is None where no attack ran. Of the worst points of several balls, `ball` is the first one.
    """

    x_adv: Tensor
    began: Tensor | None
    ball: Ball


class Ascent:
    """x_adv = attack(x), on a search twin of the model or on the model itself.

    Afterwards flags, weights and buffers of the model are as before.

    Args:
        settings: model, inner loss, attack and search; see `StepSettings`.
        forward: the model as it is trained. It is attacked where there is no twin.

    Attributes:
        twin_note: why there is no twin although one was asked for; "" otherwise.
        way: in which form the twin was found to be fastest, or why it is not recorded; "" otherwise.
        memory: what the attack keeps between two steps.
    """

    def __init__(self, settings: StepSettings, forward: Forward) -> None:
        self.settings, self.twin_note = settings, ""
        self.memory = Memory()
        self._forward = forward
        self._twin: SearchTwin | None = None
        self._twin_tried = False
        #: Whether the model has no slope at black and white pixels; None: not known yet.
        self._hides: bool | None = None if settings.attack_bn == "eval" else False

    @property
    def way(self) -> str:
        """See above."""
        if self._twin is None:
            return ""
        notes = [self._twin.way, self._twin.graphs.note if self._twin.graphs else ""]
        return "; ".join(note for note in notes if note)

    def forget(self) -> None:
        """Give back the memory of what was recorded around the twin; nothing is recorded any more."""
        if self._twin is not None and self._twin.graphs is not None:
            self._twin.graphs.forget()

    def each(
        self,
        x: Tensor,
        y: Tensor,
        rng: RowRandom,
        parts: Sequence[slice],
        y_soft: Tensor | None,
        threats: Sequence[Threat],
        *,
        worst: bool = False,
    ) -> list[Found]:
        """What the attack of each threat finds in its ball.

        Args:
            x: clean pixels [B, C, H, W] in [0, 1], in the memory format of training.
            y: labels int64 [B].
            rng: one random stream per row, for the start of the attack, the same in each ball.
            parts: the rows of each micro-batch; they cover x in order.
            y_soft: label distributions [B, K], or None.
            threats: attacks and balls.
            worst: give one answer: for each row the point with the largest inner loss of those found, which
                costs a forward pass at each.
        """
        columns: list[list[Found]] = []
        with frozen(self.settings.model, bn=_BATCH_NORM[self.settings.attack_bn]):
            searcher = self._searcher(x[parts[0]])
            for rows in parts:
                clean, own = x[rows], rng.rows(rows)
                seen = self._seen(searcher, clean, own)
                loss = self._loss(seen, clean, y[rows], some_rows(y_soft, rows))
                row = [self._search(seen, clean, y[rows], loss, own.rows(_ALL), threat) for threat in threats]
                columns.append([_worst(seen, loss, row)] if worst and len(row) > 1 else row)
        return [_joined(pieces) for pieces in zip(*columns, strict=True)]

    def _search(
        self, seen: Classifier, x: Tensor, y: Tensor, loss: RowLoss, rng: RowRandom, threat: Threat
    ) -> Found:
        """The attack of one threat on one micro-batch."""
        attack, ball = threat
        oracle = Oracle(
            seen, x, Criterion(y), loss=loss, rng=rng, stop=self.settings.stop, memory=self.memory
        )
        x_adv = attack(oracle, x, ball)
        return Found(x_adv, x if oracle.began is None else oracle.began, ball)

    def _seen(self, searcher: Classifier, x: Tensor, rng: RowRandom) -> Classifier:
        """What the attack sees at clean pixels x: the view of the objective, else the searcher itself."""
        view = self.settings.view
        return searcher if view is None else view(searcher, x, rng)

    def _loss(self, searcher: Classifier, x: Tensor, y: Tensor, y_soft: Tensor | None) -> RowLoss:
        """The inner loss of one micro-batch; one that compares with the clean answer asks for it once."""
        assert self.settings.inner is not None, "nothing to ascend"
        clean = partial(_logits, searcher, x)
        return bind_inner(self.settings.inner, y, y_soft=y_soft, clean=clean, **self.settings.inner_params)

    def _searcher(self, x: Tensor) -> Classifier:
        """The twin with the present weights, or the model itself. The first call compares both on x."""
        unknown = self._hides is None
        if unknown:
            self._hides = hides_bounds(self.settings.model, x)
        if not self._twin_tried or (unknown and self._hides):
            self._twin = self._make_twin(x)
            self._twin_tried = True
        elif self._twin is not None:
            self._twin.refresh()
        searcher = self._twin or self._forward
        return opened(searcher) if self._hides else searcher

    def _make_twin(self, x: Tensor) -> SearchTwin | None:
        """The twin; None where none is wanted or its answers on x differ from the model's."""
        settings = self.settings
        if settings.search.plain or settings.attack_bn != "eval" or settings.data_parallel:
            return None
        search = settings.search
        if self._hides:
            search = search.beside_bounds()
        twin, note = search.faithful(settings.model, x)
        self.twin_note = "" if twin is not None else note
        return twin


def _joined(parts: Sequence[Found]) -> Found:
    """The micro-batches of a batch as one; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    began = torch.cat([part.began for part in parts if part.began is not None])
    return Found(torch.cat([part.x_adv for part in parts]), began, parts[0].ball)


def _worst(searcher: Classifier, loss: RowLoss, found: Sequence[Found]) -> Found:
    """For each row the point with the largest loss; of equal ones the first. A loss of NaN is the largest."""
    losses = torch.stack([loss(_logits(searcher, points.x_adv)).detach() for points in found])
    chosen = losses.nan_to_num(nan=torch.inf).argmax(0)
    x_adv, began = found[0].x_adv, found[0].began
    for k, points in enumerate(found[1:], start=1):
        here = column(chosen == k, x_adv)
        x_adv = torch.where(here, points.x_adv, x_adv)
        if began is not None and points.began is not None:
            began = torch.where(here, points.began, began)
    return Found(x_adv, began, found[0].ball)


def _logits(searcher: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return searcher(x)


def some_rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """tensor[rows]; None for None."""
    return None if tensor is None else tensor[rows]
