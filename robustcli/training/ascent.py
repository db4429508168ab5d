"""The inner half of a training step: search the ball for points where the inner loss is high."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robustcli.core.losses import Criterion, bind_inner
from robustcli.core.memory import Memory
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier
from robustcli.training.forward import Forward
from robustcli.training.settings import StepSettings

#: The setting `attack_bn` -> how `frozen` names it.
_BATCH_NORM: dict[str, Literal["eval", "batch"]] = {"eval": "eval", "train": "batch"}


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
        began: where the last call asked for its first gradient, [B, C, H, W].
    """

    def __init__(self, settings: StepSettings, forward: Forward) -> None:
        self.settings, self.twin_note = settings, ""
        self.memory = Memory()
        self.began: Tensor | None = None
        self._forward = forward
        self._twin: SearchTwin | None = None
        self._twin_tried = False

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

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        rng: RowRandom,
        parts: Sequence[slice],
        y_soft: Tensor | None,
        progress: float,
    ) -> Tensor:
        """x_adv [B, C, H, W], by the attack and in the ball of the share `progress` of the run.

        Args:
            x: clean pixels [B, C, H, W] in [0, 1], in the memory format of training.
            y: labels int64 [B].
            rng: one random stream per row, for the start of the attack.
            parts: the rows of each micro-batch; they cover x in order.
            y_soft: label distributions [B, K], or None.
            progress: in [0, 1].
        """
        model, (attack, ball) = self.settings.model, self.settings.threat(progress)
        with frozen(model, bn=_BATCH_NORM[self.settings.attack_bn]):
            searcher = self._searcher(x[parts[0]])
            attacked, began = [], []
            for rows in parts:
                clean = x[rows]
                own = rng.rows(rows)
                seen = self._seen(searcher, clean, own)
                oracle = self._oracle(seen, clean, y[rows], some_rows(y_soft, rows), own)
                attacked.append(attack(oracle, clean, ball))
                began.append(clean if oracle.began is None else oracle.began)
        self.began = _joined(began)
        return _joined(attacked)

    def _seen(self, searcher: Classifier, x: Tensor, rng: RowRandom) -> Classifier:
        """What the attack sees at clean pixels x: the view of the objective, else the searcher itself."""
        view = self.settings.view
        return searcher if view is None else view(searcher, x, rng)

    def _oracle(
        self, searcher: Classifier, x: Tensor, y: Tensor, y_soft: Tensor | None, rng: RowRandom
    ) -> Oracle:
        """The oracle that answers the attack on one micro-batch."""
        assert self.settings.inner is not None, "nothing to ascend"
        clean = partial(_logits, searcher, x)
        loss = bind_inner(self.settings.inner, y, y_soft=y_soft, clean=clean, **self.settings.inner_params)
        return Oracle(
            searcher, x, Criterion(y), loss=loss, rng=rng, stop=self.settings.stop, memory=self.memory
        )

    def _searcher(self, x: Tensor) -> Classifier:
        """The twin with the present weights, or the model itself. The first call compares both on x."""
        if not self._twin_tried:
            self._twin = self._make_twin(x)
            self._twin_tried = True
        elif self._twin is not None:
            self._twin.refresh()
        return self._twin or self._forward

    def _make_twin(self, x: Tensor) -> SearchTwin | None:
        """The twin; None where none is wanted or its answers on x differ from the model's."""
        settings = self.settings
        if settings.search.plain or settings.attack_bn != "eval" or settings.data_parallel:
            return None
        twin, note = settings.search.faithful(settings.model, x)
        self.twin_note = "" if twin is not None else note
        return twin


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts of a batch as one; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _logits(searcher: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return searcher(x)


def some_rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """tensor[rows]; None for None."""
    return None if tensor is None else tensor[rows]
