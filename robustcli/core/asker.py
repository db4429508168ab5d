"""How a model is asked: in padded batches, averaged over its draws, from a recording where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from robustcli.core.graphs import Graphs, Work
from robustcli.core.losses import RowLoss
from robustcli.core.padding import padded, padded_rows
from robustcli.core.slope import needs_whole_backward, slope
from robustcli.core.types import Classifier

#: (x_adv, grad, *given) -> the next point, all [R, ...]: a pure function that equals others of the same work.
Move = Callable[..., Tensor]
#: Logits as the model gives them -> the logits [R, K] of the joint problem.
Joint = Callable[[Tensor], Tensor]


class Gradient(NamedTuple):
    """Answer of `Oracle.gradient`: loss [R], logits [R, K], and grad [R, C, H, W] of the summed loss."""

    loss: Tensor
    logits: Tensor
    grad: Tensor


class Asker:
    """Passes of one model. It keeps no points, knows no rows, and counts nothing: that is the oracle's.

    Args:
        model: pixels [R, C, H, W] -> logits [R, K], asked for gradients. scorer: the same for logits alone.
        draws: passes that are averaged per answer, >= 1.
        fills: whether batches are filled up to `bucket(R)` rows, as is right where R shrinks.
        graphs: recordings of the model; None without any.
        note: told one line for the user.
    """

    def __init__(
        self,
        model: Classifier,
        scorer: Classifier,
        *,
        draws: int,
        fills: bool,
        graphs: Graphs | None,
        note: Callable[[str], None],
    ) -> None:
        self.model, self.graphs = model, graphs
        self.scorer, self._draws, self._fills, self._note = scorer, draws, fills, note
        self._whole = False

    def logits(self, x: Tensor, joint: Joint) -> Tensor:
        """Joint logits [R, K] without a gradient, the mean over the draws, in the type of x [R, C, H, W]."""
        point = self._filled(x)
        with torch.no_grad():
            answers = (joint(self.scorer(point).to(x.dtype)[: len(x)]) for _ in range(self._draws))
            logits = next(answers)
            for answer in answers:
                logits = logits + answer
        return logits / self._draws

    def gradient(self, x_adv: Tensor, ascend: Callable[[Tensor], Tensor], joint: Joint) -> Gradient:
        """`_plain`, from a recording where there is one."""
        if self.graphs is None or not isinstance(ascend, RowLoss) or ascend.formula is None:
            return self._plain(x_adv, ascend, joint)
        key, work = ("gradient", ascend.formula), _sloping(self.model, ascend.fn)
        inputs, plain = (x_adv, *ascend.state), partial(self._plain, x_adv, ascend, joint)
        return Gradient(*self.graphs(key, work, inputs, self._size(x_adv), plain))

    def step(
        self,
        x_adv: Tensor,
        ascend: RowLoss,
        joint: Joint,
        move: Move,
        given: tuple[Tensor, ...],
        number: int,
    ) -> tuple[Tensor, Gradient]:
        """The next point and the answer at x_adv [R, C, H, W], as one recording where there is one.

        number: of the search. A recording that is new to it is proven before it counts.
        """

        def plain() -> tuple[Tensor, ...]:
            answer = self.gradient(x_adv, ascend, joint)
            return move(x_adv, answer.grad, *given), *answer

        formula = ascend.formula
        if self.graphs is None or formula is None:
            moved, *answer = plain()
        else:
            key, work = ("step", formula, move), _moving(self.model, ascend.fn, move, len(given))
            inputs = (x_adv, *given, *ascend.state)
            moved, *answer = self.graphs(key, work, inputs, self._size(x_adv), plain, number)
        return moved, Gradient(*answer)

    def _filled(self, x: Tensor) -> Tensor:
        return padded(x) if self._fills else x

    def _size(self, x: Tensor) -> int:
        """Rows of `_filled(x)`."""
        return padded_rows(x) if self._fills else len(x)

    def _float(self, x: Tensor, rows: int, joint: Joint) -> Tensor:
        """Joint logits [rows, K] of the first rows, in the type of the pixels whatever the model has."""
        return joint(self.model(x).to(x.dtype)[:rows])

    def _plain(self, x_adv: Tensor, ascend: Callable[[Tensor], Tensor], joint: Joint) -> Gradient:
        """Loss, logits and finite gradient at x_adv [R, C, H, W]: the mean over the draws."""
        point = self._filled(x_adv.detach()).requires_grad_(True)
        answers = [self._differentiate(point, len(x_adv), ascend, joint) for _ in range(self._draws)]
        values, logits, grad = _mean(answers)
        # Not in place: a gradient may be an expanded tensor.
        return Gradient(values, logits, grad.nan_to_num(0.0, 0.0, 0.0))

    def _differentiate(
        self, point: Tensor, rows: int, ascend: Callable[[Tensor], Tensor], joint: Joint
    ) -> Gradient:
        """One forward and one backward pass at `point`, of which the first `rows` rows count.

        The rows after them only fill the batch up. A model with an operation that has no derivative, such as
        a floor division, gets the gradient 0, and a note says so.
        """
        try:
            with torch.enable_grad():
                logits = self._float(point, rows, joint)
                values = ascend(logits)
                grad = slope(values, point, whole=self._whole)
        except RuntimeError as error:
            if needs_whole_backward(error) and not self._whole:
                self._whole = True
                return self._differentiate(point, rows, ascend, joint)
            if "derivative" not in str(error):
                raise
            self._note(f"the model has an operation without a derivative: {str(error).splitlines()[0][:120]}")
            logits, grad = self._float(point.detach(), rows, joint), torch.zeros_like(point)
            values = ascend(logits)
        return Gradient(values.detach(), logits.detach(), grad[:rows])


def _mean(answers: list[Gradient]) -> Gradient:
    """The mean of one answer per draw; a single one as it is."""
    if len(answers) == 1:
        return answers[0]
    return Gradient(*(torch.stack(parts).mean(0) for parts in zip(*answers, strict=True)))


def _sloping(model: Classifier, loss: Callable[..., Tensor]) -> Work:
    """(x_adv, *state) -> loss, logits and finite gradient, as `Asker.gradient` on rows that are filled up."""

    def work(x_adv: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        point = x_adv.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = model(point).to(point.dtype)
            values = loss(logits, *state)
            grad = slope(values, point)
        return values.detach(), logits.detach(), grad.nan_to_num(0.0, 0.0, 0.0)

    return work


def _moving(model: Classifier, loss: Callable[..., Tensor], move: Move, given: int) -> Work:
    """(x_adv, what the move is given, *state) -> the next point, and the answers of `_sloping`."""
    sloping = _sloping(model, loss)

    def work(x_adv: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        answer = sloping(x_adv, *more[given:])
        return move(x_adv, answer[2], *more[:given]), *answer

    return work
