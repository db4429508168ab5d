"""Backward bounds of inner neurons: of those alone whose box leaves their bend undecided."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.core.bounds.backward import Passes
from robustcli.core.bounds.dense import Convolution, MatMul
from robustcli.core.bounds.op import Affine
from robustcli.core.bounds.pooling import MaxPool
from robustcli.core.bounds.program import Program
from robustcli.core.bounds.rectifiers import Rectifier
from robustcli.core.bounds.rows import Rows, Window, flat

#: Bytes of coefficients that one backward pass holds at once: what a cache holds, or enough to fill a GPU.
ROOM = {"cpu": 2**23, "": 2**29}
COPIES = 6  #: tensors of the largest node that a pass holds beside each other
_HARDLY = 1e-9  # share of a bound that rounding may explain


@dataclass(frozen=True)
class Looser:
    """Where plain CROWN was looser than a box: `neurons` of `asked` bounds of the layer `name`.

    images: places in the batch of those that such a bound is about.
    """

    name: str
    neurons: int
    asked: int
    images: frozenset[int]

    @classmethod
    def counted(cls, name: str, backward: Tensor, box: Tensor, rows: Tensor) -> Looser:
        """Of lower bounds [Q]: how many backward ones are below those of the box, beyond rounding.

        rows: int64 [Q], the image of each bound.
        """
        worse = backward < box - _HARDLY * (1 + box.abs())
        return cls(name, int(worse.sum()), worse.numel(), frozenset(rows[worse].tolist()))


def tighten(passes: Passes, node: int, *, both: bool) -> list[Looser]:
    """Bound the undecided neurons of a node by backward passes, if it is where a bend reads.

    The box of the node in the frame becomes the tighter of both; with `both` false the backward bound.
    """
    frame = passes.frame
    asked = _undecided(passes, node)
    if asked is not None and both:
        asked = asked | _contested(passes, node)
    if asked is None or not asked.any():
        return []
    low, high = frame.boxes[node]
    rows, places = flat(asked).nonzero(as_tuple=True)
    under, over = backward_bounds(passes, node, rows, places)
    old = flat(low)[rows, places], flat(high)[rows, places]
    name = frame.program.steps[node - 1].name
    below, boxes = torch.cat((under, -over)), torch.cat((old[0], -old[1]))
    found = Looser.counted(name, below, boxes, torch.cat((rows, rows)))
    if both:
        under, over = torch.maximum(under, old[0]), torch.minimum(over, old[1])
    frame.boxes[node] = (_placed(low, rows, places, under), _placed(high, rows, places, over))
    return [found]


def backward_bounds(passes: Passes, node: int, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds, each [Q], of the neurons `places` [Q] (flat) of the images `rows` [Q]."""
    under, over = [], []
    for part in chunks(len(rows), _width(passes, node), room(rows.device)):
        a, which = _neurons(passes, node, rows[part], places[part])
        under.append(passes.least(node, a, which))
        over.append(-passes.least(node, -a, which))
    return torch.cat(under), torch.cat(over)


def _neurons(passes: Passes, node: int, images: Tensor, places: Tensor) -> tuple[Tensor, Rows]:
    """Coefficients 1 at one neuron per row: windows of one element in planes, whole rows elsewhere."""
    shape, batch = passes.frame.program.shape_of(node), len(passes.region.lower)
    many, row = len(places), torch.arange(len(places), device=places.device)
    if len(shape) != 3:
        a = passes.region.lower.new_zeros((many, math.prod(shape)))
        a[row, places] = 1
        return a.reshape(many, *shape), Rows(images, batch)
    height, width = shape[1:]
    a = passes.region.lower.new_zeros((many, shape[0], 1, 1))
    a[row, places // (height * width)] = 1
    place = places % (height * width)
    origin = torch.stack((place // width, place % width), 1)
    return a, Window(images, batch, origin, (1, 1), (height, width))


def _width(passes: Passes, node: int) -> int:
    """Bytes that one row of a pass from one neuron of a node holds, with the windows that it goes through."""
    program, shape = passes.frame.program, passes.frame.program.shape_of(node)
    if len(shape) != 3:
        return row_bytes(program, node)
    one = torch.zeros(1, 2, dtype=torch.int64)
    window, widest = Window(one[:, 0], 1, one, (1, 1), (shape[1], shape[2])), shape[0]
    while node:
        step = program.steps[node - 1]
        shapes = [program.shape_of(before) for before in step.inputs]
        found = step.op.window(passes.frame.weights[node - 1], window, shapes)
        if found is None or found.wide or len(shapes) != 1 or len(shapes[0]) != 3:
            return row_bytes(program, node)
        window, node = found, step.inputs[0]
        widest = max(widest, shapes[0][0] * window.size[0] * window.size[1])
    return 8 * COPIES * widest


def room(device: torch.device) -> int:
    """Bytes that one backward pass may hold on a device, unless a single row is longer."""
    return ROOM.get(device.type, ROOM[""])


def chunks(rows: int, each: int, most: int) -> Iterator[slice]:
    """Slices of so many rows of `each` bytes as fit into `most` bytes, one row at least."""
    size = max(1, most // each)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def row_bytes(program: Program, node: int) -> int:
    """Bytes that one row of a backward pass from a node holds: float64, a few tensors of the widest node."""
    widest = max(math.prod(program.shape_of(one)) for one in range(node + 1))
    return 8 * COPIES * widest


def _undecided(passes: Passes, node: int) -> Tensor | None:
    """bool [B, *shape]: neurons that a bend reads, and about which a backward pass may say more than the box.

    Of a rectifier those that may be on both sides of 0, of other bends all with a box of some width. A box is
    exact, and None is the answer, behind the one linear layer that reads a box of pixels; and behind a bend,
    whose monotone pieces move the ends of a box.
    """
    program = passes.frame.program
    readers = [step.op for step in program.steps if node in step.inputs and not isinstance(step.op, Affine)]
    if not readers or not isinstance(program.steps[node - 1].op, Affine):
        return None
    if passes.region.norm == "linf" and _exact(program, node):
        return None
    low, high = passes.frame.boxes[node]
    if all(isinstance(op, Rectifier) for op in readers):
        return (low < 0) & (high > 0)
    return low < high


def _contested(passes: Passes, node: int) -> Tensor:
    """bool [B, *shape]: neurons behind whose rectifier a maximum is taken that boxes leave undecided.

    The lines of a maximum depend on the boxes of all that may be the largest, decided rectifier or not.
    """
    frame, program = passes.frame, passes.frame.program
    found = torch.zeros_like(frame.boxes[node][0], dtype=torch.bool)
    for place, step in enumerate(program.steps):
        if node in step.inputs and isinstance(step.op, Rectifier):
            box = step.op.interval(frame.weights[place], frame.boxes[node])
            for reader in program.steps:
                if place + 1 in reader.inputs and isinstance(reader.op, MaxPool):
                    found |= reader.op.contested(box)
    return found & (frame.boxes[node][0] < frame.boxes[node][1])


def _exact(program: Program, node: int) -> bool:
    """Whether nothing but one linear layer, scalings and moved numbers lie between the pixels and a node."""
    mixed = 0
    while node:
        step = program.steps[node - 1]
        if not isinstance(step.op, Affine) or len(step.inputs) != 1:
            return False
        mixed += isinstance(step.op, (Convolution, MatMul)) or step.op.terms > 8
        node = step.inputs[0]
    return mixed <= 1


def _placed(whole: Tensor, rows: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """A copy of `whole` [B, *shape] with other values at (rows, places)."""
    copy = flat(whole).clone()
    copy[rows, places] = values
    return copy.reshape(whole.shape)
