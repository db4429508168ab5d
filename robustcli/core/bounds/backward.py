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
from robustcli.core.bounds.op import FINE, Pick, largest, weighed
from robustcli.core.bounds.region import Region


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
        rows: Tensor,
        *,
        stop: Callable[[int], bool] | None = None,
        steeper: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """A lower bound of a . y over the region, [Q].

        Args:
            node: the node y.
            a: coefficients [Q, *shape of y].
            rows: int64 [Q], the image of each row.
            stop: nodes at which the box is taken instead of going on.
            steeper: for the place of a rectifier, what to add to the slopes of its lines below, [Q, *shape].
        """
        pick = _pick(rows, len(self.region.lower))
        pending, total = {node: a}, a.new_zeros(len(a))
        for now in range(node, 0, -1):
            if now not in pending:
                continue
            a = pending.pop(now)
            if stop is not None and stop(now):
                total = total + Region(*self.frame.boxes[now], self.sound).least(a, pick)
                continue
            parts, moved = self._step(now - 1, a, pick)
            if steeper is not None and now - 1 in steeper:
                parts[0] = parts[0] + a.clamp(min=0) * steeper[now - 1]
            total = total + moved
            for one, part in zip(self.frame.program.steps[now - 1].inputs, parts, strict=True):
                if one in pending:
                    part = pending[one] + part
                    if self.sound:
                        total = total - 2 * FINE * weighed(part.abs(), largest(self.frame.boxes[one]), pick)
                pending[one] = part
        if 0 in pending:
            total = total + self.region.least(pending[0], pick)
        return total

    def _step(self, place: int, a: Tensor, pick: Pick) -> tuple[list[Tensor], Tensor]:
        """Through one step: the coefficients of its inputs, and what the bound gains or loses, [Q]."""
        program, charge = self.frame.program, self.charge(place)
        step = program.steps[place]
        shapes = [program.shape_of(node) for node in step.inputs]
        parts, moved = step.op.pull(self.frame.weights[place], self.lines(place), a, shapes, pick)
        total = a.new_zeros(len(a)) if moved is None else moved
        if charge is not None:
            total = total - weighed(a.abs(), charge, pick)
        return parts, total


def _pick(rows: Tensor, batch: int) -> Pick:
    if batch == 1:
        return lambda v: v
    return lambda v: v[rows]
