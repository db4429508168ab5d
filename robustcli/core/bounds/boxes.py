"""Interval bound propagation: a box of pixels in, a box of logits out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.core.bounds.op import Box, Weights
from robustcli.core.bounds.program import Program


@dataclass
class Frame:
    """One pass over a program: the weights of the moment, and a box for each node that is known so far.

    error: by how much float32 execution may leave the exact value, per node; None where it cannot.
    """

    program: Program
    weights: list[Weights] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    error: list[Tensor | None] = field(default_factory=list)

    def inputs(self, place: int) -> list[Box]:
        """The boxes that step `place` reads."""
        return [self.boxes[node] for node in self.program.steps[place].inputs]


def begin(program: Program, lower: Tensor, upper: Tensor) -> Frame:
    """A pass over the box of pixels [lower, upper], each [B, *shape], in their precision; no gradients."""
    frame = Frame(program, boxes=[(lower, upper)], error=[None])
    for step in program.steps:
        frame.weights.append(tuple(one.detach() for one in step.op.read(lower.dtype)))
    return frame


def advance(frame: Frame, place: int, *, sound: bool) -> Box:
    """The box of the node of step `place` from the boxes of its inputs; kept in the frame.

    sound: widen it by what float32 execution and our own float64 arithmetic may add; docs/certificates.md.
    """
    op, weights, boxes = frame.program.steps[place].op, frame.weights[place], frame.inputs(place)
    low, high = op.interval(weights, *boxes)
    error = op.error(weights, *boxes) if sound else None
    if error is not None:
        low, high = low - error, high + error
    frame.error.append(error)
    frame.boxes.append((low, high))
    return low, high


def interval(program: Program, lower: Tensor, upper: Tensor, *, sound: bool = True) -> Box:
    """(l, u), each [B, K]: every logit of every image between `lower` and `upper` lies in [l, u].

    Affine steps y = W x + b: W c + b -+ |W| r, with the centre c and the radius r of the box of x. Monotone
    activations and maxima: the ends of the box.

    Args:
        lower, upper: pixels [B, *shape], lower <= upper.
        sound: compute in float64 and widen each step, so that the bounds hold for the real-valued network and
            for its float32 execution. False: the plain formulas, in the precision of `lower`.

    Source: Gowal et al., arXiv:1810.12715.
    """
    if sound:
        lower, upper = lower.double(), upper.double()
    frame = begin(program, lower, upper)
    for place in range(len(program.steps)):
        advance(frame, place, sound=sound)
    return frame.boxes[program.output]


def walk(program: Program, x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, l, u), each float32 [B, K]: the logits of x, and bounds over the box; differentiable, for training.

    BatchNorm in train mode takes the statistics of the activations of x for all three, and moves its running
    statistics once. Dropout in train mode uses one mask. There is no outward rounding.

    Args:
        x: clean pixels [B, *shape].
        lower, upper: the box around them, [B, *shape].

    Source: Shi et al., NeurIPS 2021, arXiv:2103.17268, section 3 (statistics of the clean images).
    """
    z, frame = trained(program, x, lower, upper)
    return z, *frame.boxes[program.output]


def trained(program: Program, x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Frame]:
    """The logits of x and the boxes of all nodes, as `walk`; autocast is off inside."""
    with torch.autocast(x.device.type, enabled=False):
        values = [x.float()]
        frame = Frame(program, boxes=[(lower.float(), upper.float())], error=[None])
        for place, step in enumerate(program.steps):
            given = [values[node] for node in step.inputs]
            frame.weights.append(step.op.read(torch.float32, given))
            values.append(step.op.forward(frame.weights[place], *given))
            advance(frame, place, sound=False)
        return values[program.output], frame
