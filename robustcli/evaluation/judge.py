"""The only place where an attack's success is decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.padding import padded
from robustcli.runtime.precision import tf32_products

_SURE = 0.9  # share of the draws that must be successes before a running attack gives a row up


@contextmanager
def exact_fp32() -> Iterator[None]:
    """No autocast and no TF32 inside: cuDNN uses TF32 by default, which moves borderline verdicts."""
    with tf32_products(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@dataclass(frozen=True)
class Ruling:
    """What the judge says of R points.

    hit: bool [R], a success inside the ball and the box. predicted: int64 [R], the label now. distance:
    float64 [R], from the clean image. inside: bool [R], in ball and box. logits: [R, K], mean over the draws.
    """

    hit: Tensor
    predicted: Tensor
    distance: Tensor
    inside: Tensor
    logits: Tensor


class Clean(NamedTuple):
    """What the judge says of clean images.

    logits: [B, K], mean over the draws. right: bool [B], finite and of label y.
    """

    logits: Tensor
    right: Tensor


class Judge:
    """Predicts again with the original model in fp32, and measures again in float64.

    It counts rows: `forward_rows` that the model was asked for, `refused_rows` that lay outside the ball or
    the box, `broken_rows` whose answer held NaN or Inf.

    Args:
        model: the original classifier, held frozen in eval mode by the caller.
        ball: the threat. Points outside it never count, whatever the model says of them.
        draws: model passes per question, more than 1 for a randomised model: the majority of fresh draws
            decides, and a tie is no success.
        bounded: False for threats that no radius describes (rotations, corruptions): any finite point of the
            pixel box counts.

    Raises ValueError if draws < 1.
    """

    def __init__(self, model: nn.Module, ball: Ball, *, draws: int = 1, bounded: bool = True) -> None:
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        self._model, self._ball, self._draws, self._bounded = model, ball, draws, bounded
        self.forward_rows = 0
        self.refused_rows = 0
        self.broken_rows = 0

    def logits(self, x: Tensor) -> Tensor:
        """float32 [B, K] of the original model, without gradient: the mean over the draws."""
        return self._passes(x).mean(0)

    def clean(self, x: Tensor, y: Tensor) -> Clean:
        """Logits of x, and which rows are right; of a randomised model the majority of other draws says."""
        logits = self.logits(x)
        label = logits.argmax(1)
        if self._draws > 1:
            label = self.label(x)
        return Clean(logits, (label == y) & torch.isfinite(logits).all(1))

    def label(self, x: Tensor) -> Tensor:
        """int64 [B]: the class that most draws predict; of several the one with the smallest number."""
        return _mode(self._passes(x))

    def success_rate(self, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Tensor:
        """float32 [R]: in which share of the draws each point is a success.

        1 - its mean over all samples is the accuracy of a single draw.
        """
        return _votes(self._passes(x_adv), criterion, rows).float().mean(0)

    def hits(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Tensor:
        """bool [R]: which candidates of a running attack are successes; arguments as for `rule`.

        The model is asked only about points inside. With several draws nine of ten must be successes: a
        search that stopped at its first lucky majority would be refused by the fresh draws of `rule`.
        """
        hit = self._inside(x, x_adv)
        asked = hit.nonzero()[:, 0]
        if len(asked):
            of = asked if rows is None else rows[asked]
            hit[asked] = _sure(_votes(self._passes(x_adv[asked]), criterion, of))
        return hit

    def rule(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Ruling:
        """The verdict on R points.

        Args:
            x, x_adv: clean images and points, [R, C, H, W] in [0, 1].
            criterion: what a success is, for the B rows of a batch.
            rows: int64 [R], which of these rows the points are of; None = all of them, R = B.
        """
        inside, logits = self._inside(x, x_adv), self._passes(x_adv)
        hit = _majority(_votes(logits, criterion, rows)) & inside
        return Ruling(hit, _mode(logits), self._ball.distance(x, x_adv), inside, logits.mean(0))

    def _inside(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """bool [R]: points that may count. The others are counted as refused."""
        if self._bounded:
            inside = self._ball.contains(x, x_adv)
        else:
            boxed = (x_adv >= self._ball.low) & (x_adv <= self._ball.high)  # a NaN is in no box
            inside = boxed.flatten(1).all(1)
        self.refused_rows += int((~inside).sum())
        return inside

    def _passes(self, x: Tensor) -> Tensor:
        """[D, B, K] float32: fresh draws of the original model."""
        if not len(x):
            return x.new_zeros(self._draws, 0, 2)
        self.forward_rows += len(x) * self._draws
        with torch.no_grad(), exact_fp32():
            point = padded(x)
            logits = torch.stack([self._model(point)[: len(x)].float() for _ in range(self._draws)])
        self.broken_rows += int((~torch.isfinite(logits)).any(2).any(0).sum())
        return logits


def _votes(logits: Tensor, criterion: Criterion, rows: Tensor | None) -> Tensor:
    """bool [D, R]: success per draw, from logits [D, R, K]."""
    return torch.stack([criterion.hit(draw, rows) for draw in logits])


def _sure(votes: Tensor) -> Tensor:
    """bool [R]: a share of `_SURE` or more of the votes [D, R]; of a single vote that vote."""
    if len(votes) == 1:
        return _majority(votes)
    return votes.float().mean(0) >= _SURE


def _majority(votes: Tensor) -> Tensor:
    """bool [R]: more than half of the votes [D, R]."""
    return 2 * votes.sum(0) > len(votes)


def _mode(logits: Tensor) -> Tensor:
    """int64 [R]: the most frequent argmax over the draws of [D, R, K]."""
    if len(logits) == 1:
        return logits[0].argmax(1)
    return torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2]).sum(0).argmax(1)
