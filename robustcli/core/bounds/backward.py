"""Backward linear bounds (CROWN): from coefficients at a node to a bound over the region.

A lower bound of a . y for the node y of a program is carried back. At an affine step a . (W x + b) becomes
(W^T a) . x + a . b. At a bend each positive coefficient takes the line below and each negative one the line
above. At the image the least value over the region is known in closed form. An upper bound is the lower bound
of -a, negated.

Source: Zhang et al., NeurIPS 2018, arXiv:1811.00866; on graphs: Xu et al., NeurIPS 2020, arXiv:2002.12920.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustcli.core.bounds.boxes import Frame
from robustcli.core.bounds.op import FINE, largest
from robustcli.core.bounds.region import Region
from robustcli.core.bounds.rows import Rows, Window


@dataclass
class Passes:
    """Backward passes over one frame, whose boxes must be final up to where a pass starts.

    sound: provide for float32 execution and for our own rounding, step by step.
    """

    frame: Frame
    region: Region
    sound: bool
    _lines: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    _charges: dict[int, Tensor | None] = field(default_factory=dict)

    def rows(self, images: Tensor) -> Rows:
        """Rows of whole coefficients for these images, int64 [Q]."""
        return Rows(images, len(self.region.lower))

    def lines(self, place: int) -> tuple[Tensor, ...]:
        """What step `place` needs of the boxes of its inputs; computed once."""
        if place not in self._lines:
            step = self.frame.program.steps[place]
            self._lines[place] = step.op.relax(self.frame.weights[place], *self.frame.inputs(place))
        return self._lines[place]

    def charge(self, place: int) -> Tensor | None:
        """v [B, *shape]: a bound through step `place` loses |a| . v to rounding; None for nothing."""
        if not self.sound:
            return None
        if place not in self._charges:
            frame = self.frame
            self._charges[place] = frame.program.steps[place].op.charge(
                self.lines(place), frame.error[place + 1], frame.boxes[place + 1], *frame.inputs(place)
            )
        return self._charges[place]

    def least(
        self,
        node: int,
        a: Tensor,
        rows: Rows,
        *,
        stop: Callable[[int], bool] | None = None,
        steeper: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """A lower bound of a . y over the region, [Q].

        Args:
            node: the node y.
            a: coefficients [Q, *shape of y], or windows of them.
            rows: the image and the window of each row.
            stop: nodes at which the box is taken instead of going on.
            steeper: for the place of a rectifier, what to add to the slopes of its lines below, [Q, *shape].
        """
        program = self.frame.program
        pending: dict[int, tuple[Tensor, Rows]] = {node: (a, rows)}
        total = a.new_zeros(len(a))
        for now in range(node, 0, -1):
            if now not in pending:
                continue
            a, rows = pending.pop(now)
            if stop is not None and stop(now):
                total = total + Region(*self.frame.boxes[now], self.sound).least(a, rows)
                continue
            parts, rows, moved = self._step(now - 1, a, rows)
            if steeper is not None and now - 1 in steeper:
                parts[0] = parts[0] + a.clamp(min=0) * steeper[now - 1]
            total = total + moved
            for one, part in zip(program.steps[now - 1].inputs, parts, strict=True):
                if one in pending:
                    part, joined, loss = self._joined(one, pending[one], (part, rows))
                    pending[one], total = (part, joined), total - loss
                else:
                    pending[one] = part, rows
        if 0 in pending:
            total = total + self.region.least(*pending[0])
        return total

    def _step(self, place: int, a: Tensor, rows: Rows) -> tuple[list[Tensor], Rows, Tensor]:
        """Through one step: the coefficients of its inputs, their rows, and what the bound gains, [Q]."""
        program, charge, weights = self.frame.program, self.charge(place), self.frame.weights[place]
        step, onto = program.steps[place], rows
        shapes = [program.shape_of(node) for node in step.inputs]
        if isinstance(rows, Window):
            found = None if rows.wide else step.op.window(weights, rows, shapes)
            if found is None:
                a, rows = rows.whole(a)
            onto = found or rows
        parts, moved = step.op.pull(weights, self.lines(place), a, shapes, rows, onto)
        total = a.new_zeros(len(a)) if moved is None else moved
        if charge is not None:
            total = total - rows.dot(a.abs(), charge)
        return parts, onto, total

    def _joined(
        self, node: int, one: tuple[Tensor, Rows], other: tuple[Tensor, Rows]
    ) -> tuple[Tensor, Rows, Tensor]:
        """The sum of two coefficients of a node, its rows, and what it loses to rounding, [Q]."""
        if one[1] is not other[1]:
            one, other = one[1].whole(one[0]), other[1].whole(other[0])
        a, rows = one[0] + other[0], one[1]
        if not self.sound:
            return a, rows, a.new_zeros(len(a))
        return a, rows, 2 * FINE * rows.dot(a.abs(), largest(self.frame.boxes[node]))
