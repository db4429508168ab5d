"""How much memory bounds will take, from shapes alone."""

from __future__ import annotations

import math

import torch

from robustcli.core.bounds.margins import Method
from robustcli.core.bounds.op import Affine
from robustcli.core.bounds.program import Program
from robustcli.core.bounds.slopes import searched_bytes
from robustcli.core.bounds.tighten import room, row_bytes

_BOX, _LINES, _AT_WORK = (
    4,
    6,
    6,
)  # tensors per node: boxes and errors; lines; of one step


def forecast(program: Program, batch: int, method: Method) -> int:
    """Bytes that `margins` holds at most for a batch, beside the network itself; float64.

    Boxes and lines of all nodes grow with the batch. A backward pass works through its rows in chunks, so it
    holds `tighten.ROOM` bytes at most (alpha-crown four times as many), or one row where that is longer.
    """
    shapes = [math.prod(step.shape) for step in program.steps]
    bends = [
        size for size, step in zip(shapes, program.steps, strict=True) if not isinstance(step.op, Affine)
    ]
    images = 8 * batch * (_BOX * sum(shapes) + _LINES * sum(bends) + _AT_WORK * max(shapes))
    weights = 8 * 2 * sum(parameter.numel() for parameter in program.model.parameters())
    device = next(program.model.parameters(), torch.empty(0)).device
    each, most = row_bytes(program, program.output), room(device)
    if method == "ibp":
        return images + weights
    if method == "alpha-crown":
        each, most = searched_bytes(program), 4 * room(device)
    rows = batch * (program.classes - 1)
    if method != "crown-ibp":
        rows = max(rows, batch * max(shapes))
    return images + weights + max(each, min(most, rows * each))
