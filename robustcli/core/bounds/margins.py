"""Proven margins z_y - z_k over a region, by boxes, by backward passes, or by both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustcli.core.bounds.backward import Passes
from robustcli.core.bounds.boxes import Frame, advance, begin, trained
from robustcli.core.bounds.op import Affine
from robustcli.core.bounds.program import Program
from robustcli.core.bounds.region import Region, region
from robustcli.core.bounds.slopes import optimised
from robustcli.core.bounds.tighten import Looser, chunks, room, row_bytes, tighten
from robustcli.core.geometry import Ball

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown", "alpha-crown")  #: cheapest first


@dataclass(frozen=True)
class Analysis:
    """What a method proved of a batch.

    margins: float64 [B, K], lower bounds of z_y - z_k; +inf for k = y.
    unoptimised: the same before slopes were optimised: those of "crown" where the method is "alpha-crown".
    looser: where backward bounds of neurons, or of margins, were looser than boxes, which were then taken.
    """

    margins: Tensor
    unoptimised: Tensor
    looser: list[Looser] = field(default_factory=list)


class TrainedMargins(NamedTuple):
    """What a training step for CROWN-IBP needs; differentiable, float32.

    logits: of the clean images, [B, K]. ibp, crown: lower bounds of z_y - z_k, [B, K]; 0 for k = y.
    """

    logits: Tensor
    ibp: Tensor
    crown: Tensor


def margins(
    program: Program,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    method: Method = "crown",
    alpha_steps: int = 20,
    sound: bool = True,
) -> Tensor:
    """Lower bounds of z_y - z_k for all images of the region, float64 [B, K]; +inf for k = y.

    The class of an image x is proven where all entries of its row are above 0.

    Args:
        x: pixels [B, C, H, W]. y: classes int64 [B].
        ball: norm and radius of the region, which its pixel box cuts.
        method: "ibp", boxes; "crown-ibp", one backward pass over boxes; "crown", whose inner bounds are
            backward ones too, for the neurons that boxes leave undecided; "alpha-crown", which then optimises
            the slopes of the margins that are not proven. The tighter of box and backward bound counts, for
            each neuron and for each margin.
        alpha_steps: steps of that optimisation.
        sound: provide for float32 execution and our own rounding (docs/certificates.md).

    The last affine layers are merged with the difference z_y - z_k.
    Source: Zhang et al., NeurIPS 2018, arXiv:1811.00866; ICLR 2020, arXiv:1906.06316 (crown-ibp); Xu et al.,
    ICLR 2021, arXiv:2011.13824 (alpha-crown).
    """
    return analyse(program, x, y, ball, method=method, alpha_steps=alpha_steps, sound=sound).margins


@torch.no_grad()
def analyse(
    program: Program,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    method: Method = "crown",
    alpha_steps: int = 20,
    sound: bool = True,
) -> Analysis:
    """As `margins`, and where boxes were the tighter bound."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    area = region(x, ball, sound=sound)
    frame, looser = bounded(program, area, inner=method in ("crown", "alpha-crown"), sound=sound)
    passes = Passes(frame, area, sound)
    a, rows = differences(y, program.classes, area.lower)
    least = _in_chunks(passes, a, rows, _bends(program))
    if method != "ibp":
        back = _in_chunks(passes, a, rows)
        looser.append(Looser.counted("margins", back, least, rows))
        least = torch.maximum(least, back)
    first = least
    if method == "alpha-crown":
        least = first.clone()
        open_rows = (least <= 0).nonzero()[:, 0]
        better = optimised(passes, a[open_rows], rows[open_rows], steps=alpha_steps)
        least[open_rows] = torch.maximum(least[open_rows], better)
    margins, unoptimised = (_filled(one, y, program.classes, math.inf) for one in (least, first))
    return Analysis(margins, unoptimised, [one for one in looser if one.neurons])


def bounded(
    program: Program, area: Region, *, inner: bool, sound: bool, both: bool = True
) -> tuple[Frame, list[Looser]]:
    """Boxes of all nodes: IBP from the bounds so far, and with `inner` the tighter of that and CROWN.

    both: false replaces the box of an undecided neuron by its backward bound, tighter or not.
    """
    frame, looser = begin(program, *area.box), []
    passes = Passes(frame, area, sound)
    for place in range(len(program.steps)):
        advance(frame, place, sound=sound)
        if inner:
            looser += tighten(passes, place + 1, both=both)
    return frame, looser


def differentiable_margins(
    program: Program, x: Tensor, lower: Tensor, upper: Tensor, y: Tensor, method: Method = "crown-ibp"
) -> TrainedMargins:
    """Logits of x, and lower bounds of z_y - z_k over the box [lower, upper]; differentiable, for training.

    One walk (BatchNorm as in `boxes.walk`), then one backward pass over its boxes. float32, no outward
    rounding. The loss of CROWN-IBP is the cross-entropy of the logits -margins: its entry for k = y is 0.

    Args:
        x: clean pixels [B, C, H, W]. lower, upper: the box around them. y: classes int64 [B].
        method: "crown-ibp", or "ibp", whose answer has the same bounds in both fields.

    Source: Zhang et al., ICLR 2020, arXiv:1906.06316.
    """
    if method not in ("ibp", "crown-ibp"):
        raise ValueError(f"{method!r} is no method of training; known: ibp, crown-ibp")
    logits, frame = trained(program, x, lower, upper)
    boxes = trained_margins(frame, y, "ibp")
    back = boxes if method == "ibp" else trained_margins(frame, y, "crown-ibp")
    return TrainedMargins(logits, boxes, back)


def trained_margins(frame: Frame, y: Tensor, method: Literal["ibp", "crown-ibp"]) -> Tensor:
    """Lower bounds of z_y - z_k over the box that was walked, float32 [B, K], 0 for k = y; differentiable.

    frame: of `boxes.trained`. y: classes int64 [B]; other classes of the same walk may be asked, too.
    """
    program = frame.program
    stop = _bends(program) if method == "ibp" else None
    with torch.autocast(y.device.type, enabled=False):
        passes = Passes(frame, Region(*frame.boxes[0], sound=False), sound=False)
        a, images = differences(y, program.classes, frame.boxes[0][0])
        least = passes.least(program.output, a, passes.rows(images), stop=stop)
    return _filled(least, y, program.classes, 0.0)


def differences(y: Tensor, classes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of z_y - z_k for all k != y, [B (K - 1), K], and the image of each row, int64."""
    others = torch.ones((len(y), classes), dtype=torch.bool, device=y.device)
    others[torch.arange(len(y), device=y.device), y] = False
    rows, k = others.nonzero(as_tuple=True)
    a = torch.zeros((len(rows), classes), dtype=like.dtype, device=y.device)
    place = torch.arange(len(rows), device=y.device)
    a[place, y[rows]] = 1
    a[place, k] = -1
    return a, rows


def _in_chunks(passes: Passes, a: Tensor, rows: Tensor, stop: Callable[[int], bool] | None = None) -> Tensor:
    """Lower bounds of a . logits, [Q], by as many backward passes as memory asks for."""
    program = passes.frame.program
    parts = chunks(len(a), row_bytes(program, program.output), room(a.device))
    found = [passes.least(program.output, a[part], passes.rows(rows[part]), stop=stop) for part in parts]
    return torch.cat([a.new_zeros(0), *found])


def _filled(least: Tensor, y: Tensor, classes: int, own: float) -> Tensor:
    """[B (K - 1)] as [B, K], with `own` at k = y."""
    whole = least.new_full((len(y), classes), own)
    others = torch.ones_like(whole, dtype=torch.bool)
    others[torch.arange(len(y), device=y.device), y] = False
    return whole.masked_scatter(others, least)


def _bends(program: Program) -> Callable[[int], bool]:
    """Whether a node is the answer of a step that is not affine."""
    return lambda node: not isinstance(program.steps[node - 1].op, Affine)
