"""Optimised slopes (alpha-CROWN): the lines below rectifiers, chosen for each bound by gradient ascent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcli.core.bounds.backward import Passes
from robustcli.core.bounds.program import Program
from robustcli.core.bounds.rectifiers import Rectifier
from robustcli.core.bounds.tighten import chunks, room, row_bytes

_STEP = 0.25  # of Adam, in units of a slope, which lies in [0, 1]
_FADE = 0.95  # factor on it per step
_MEAN, _SQUARE = 0.9, 0.999  # memory of Adam
_KEPT = 6  # tensors per node that the graph of gradients and Adam keep, on top of those of a pass


def optimised(passes: Passes, a: Tensor, rows: Tensor, *, steps: int) -> Tensor:
    """Lower bounds [Q] of a . logits, with lower slopes of their own for each row; rows that reach 0 stop.

    Any slope from that of the negative side to 1 gives a bound, so the best of all steps is one. They start
    with those of CROWN.

    Args:
        a: [Q, K]. rows: int64 [Q], the image of each row. steps: of Adam, >= 0.

    Source: Xu et al., ICLR 2021, arXiv:2011.13824; here the inner bounds stay those of CROWN.
    """
    program = passes.frame.program
    bends = [place for place, step in enumerate(program.steps) if isinstance(step.op, Rectifier)]
    parts = chunks(len(a), searched_bytes(program), 4 * room(a.device))
    best = [_ascended(passes, bends, a[part], rows[part], steps) for part in parts]
    return torch.cat(best) if best else a.new_zeros(0)


def searched_bytes(program: Program) -> int:
    """Bytes that one row of the optimisation holds: a pass, the slopes and the state of Adam."""
    kept = sum(math.prod(step.shape) for step in program.steps)
    return row_bytes(program, program.output) + 8 * _KEPT * kept


def _ascended(passes: Passes, bends: list[int], a: Tensor, rows: Tensor, steps: int) -> Tensor:
    """The best bounds [Q] of `steps` steps."""
    program = passes.frame.program
    if not bends:
        return passes.least(program.output, a, passes.rows(rows))
    searches = [_Slope(passes, place, rows) for place in bends]
    best = a.new_full((len(a),), -torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            steeper = {search.place: search.steeper() for search in searches}
            least = passes.least(program.output, a, passes.rows(rows), steeper=steeper)
            total = least.sum()
        # A row that is proven stays as it is: it must not gain by rows that need more steps.
        best = torch.where(best > 0, best, torch.maximum(best, least.detach()))
        if step == steps or bool((best > 0).all()):
            break
        for search, slope in zip(
            searches, torch.autograd.grad(total, [s.alpha for s in searches]), strict=True
        ):
            search.move(slope, step + 1)
    return best


class _Slope:
    """The lower slopes `alpha` of one rectifier, [Q, *shape], and the state of Adam."""

    def __init__(self, passes: Passes, place: int, rows: Tensor) -> None:
        op = passes.frame.program.steps[place].op
        assert isinstance(op, Rectifier)
        low, high = passes.frame.inputs(place)[0]
        self.place, self.least = place, op.slope
        self.start = passes.lines(place)[0][rows]
        self.free = ((low < 0) & (high > 0)).to(low.dtype)[
            rows
        ]  # elsewhere the lines are the function itself
        self.alpha = self.start.clone().requires_grad_()
        self.mean, self.square = torch.zeros_like(self.alpha), torch.zeros_like(self.alpha)

    def steeper(self) -> Tensor:
        """What is added to the slopes of CROWN."""
        return (self.alpha - self.start) * self.free

    def move(self, slope: Tensor, step: int) -> None:
        """Step number `step` of Adam (Kingma & Ba, arXiv:1412.6980) upwards, and back into [least, 1]."""
        self.mean.lerp_(slope, 1 - _MEAN)
        self.square.lerp_(slope.square(), 1 - _SQUARE)
        length = (self.square / (1 - _SQUARE**step)).sqrt_().add_(1e-12)
        rate = _STEP * _FADE ** (step - 1) / (1 - _MEAN**step)
        self.alpha.addcdiv_(self.mean, length, value=rate).clamp_(self.least, 1)
