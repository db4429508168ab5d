"""The only place where an attack's success is decided."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.padding import padded
from robustcli.core.types import offers, reject_of
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

    Args:
        hit: bool [R], whether the point is a success that counts.
        predicted: int64 [R], the class that the draws behind the verdict name most often: the successful
            draws where the point is a hit, else all draws. So the label of a hit is never y.
        distance: float64 [R], ||x_adv - x||_p in pixel units.
        inside: bool [R], in ball and box; for an unbounded threat in the box.
        logits: float32 [R, K], mean over the draws.
    """

    hit: Tensor
    predicted: Tensor
    distance: Tensor
    inside: Tensor
    logits: Tensor


class Clean(NamedTuple):
    """What the judge says of clean images.

    Args:
        logits: float32 [B, K], mean over the draws.
        right: bool [B], whether the logits are finite and the label is y.
        label: int64 [B], the model's label of the image.
    """

    logits: Tensor
    right: Tensor
    label: Tensor


class Judge:
    """Decides success: predicts with the original model in fp32, and measures distances in float64.

    A guarded model answers with K + 1 logits. A clean image that it rejects is not right, and a point that it
    rejects is no success.

    Args:
        model: the original classifier, held frozen in eval mode by the caller.
        ball: the threat. Points outside it never count, whatever the model says of them.
        draws: model passes per question, more than 1 for a randomised model. A success needs more than half
            of fresh draws.
        bounded: False for threats that no radius describes (rotations, corruptions): any finite point of the
            pixel box counts.

    Attributes:
        sees_scores: whether the size of a logit means anything; False where labels are all there is.
        forward_rows: rows that went through the model.
        refused_rows: points that lay outside the ball or the box.
        broken_rows: rows whose logits held NaN or Inf.

    Raises:
        ValueError: draws < 1.
    """

    def __init__(self, model: nn.Module, ball: Ball, *, draws: int = 1, bounded: bool = True) -> None:
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        self._model, self._ball, self._draws, self._bounded = model, ball, draws, bounded
        self._reject = reject_of(model)
        self._counted = offers(model) != "gradient"  # each row that a black box gets is a query
        self.sees_scores = offers(model) != "decisions"
        self.forward_rows = 0
        self.refused_rows = 0
        self.broken_rows = 0

    def criterion(self, y: Tensor, target: Tensor | None = None) -> Criterion:
        """What a success against this model is: y, target int64 [B]. A rejected point is none."""
        return Criterion(y, target, self._reject)

    def classes(self, logits: Tensor) -> Tensor:
        """[B, K]: logits without the column of a guarded model that says "reject"."""
        return logits[:, : self._reject]

    def logits(self, x: Tensor) -> Tensor:
        """Logits float32 [B, K] of pixels x [B, C, H, W], mean over the draws, without gradient."""
        return self._passes(x).mean(0)

    def clean(self, x: Tensor, y: Tensor) -> Clean:
        """Logits of pixels x [B, C, H, W], and whether each row is right, y int64 [B].

        With several draws the label comes from fresh draws, see `label`.
        """
        logits = self.logits(x)
        label = logits.argmax(1)
        if self._draws > 1:
            label = self.label(x)
        return Clean(logits, (label == y) & torch.isfinite(logits).all(1), label)

    def label(self, x: Tensor) -> Tensor:
        """int64 [B]: the class that draws predict most often; of equal ones the one of smallest number."""
        return _mode(self._passes(x))

    def success_rate(self, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Tensor:
        """float32 [R] in [0, 1]: the share of the draws in which each point is a success.

        Let m be its mean over all samples. Then 1 - m is the accuracy of a single draw.
        """
        return _votes(self._passes(x_adv), criterion, rows).float().mean(0)

    def hits(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Tensor:
        """bool [R]: which candidates of a running attack are successes; arguments as for `rule`.

        The model is asked only about points inside. With several draws 90 % of them must be successes. A bare
        majority may be luck: the search would stop there, and the fresh draws of `rule` would refuse it. They
        are asked one after another, and end for a point that has failed too often.
        """
        hit = self._inside(x, x_adv)
        asked = hit.nonzero()[:, 0]
        if len(asked):
            of = asked if rows is None else rows[asked]
            hit[asked] = self._sure(x_adv[asked], criterion, of)
        return hit

    def _sure(self, x_adv: Tensor, criterion: Criterion, rows: Tensor) -> Tensor:
        """bool [R]: whether `_SURE` or more of the draws are successes; with one draw whether it is one."""
        spare = self._draws - math.ceil(_SURE * self._draws)  # how often a point may fail
        failed = torch.zeros_like(rows)
        broken = torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(self._draws):
            left = (failed <= spare).nonzero()[:, 0]
            if not len(left):
                break
            logits = self._draw(x_adv[left], 1)
            broken[left] |= _broken(logits)
            failed[left] += (~_votes(logits, criterion, rows[left])[0]).long()
        self.broken_rows += int(broken.sum())
        return failed <= spare

    def rule(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Ruling:
        """The verdict on R points.

        Args:
            x, x_adv: clean images and points, [R, C, H, W] in [0, 1].
            criterion: what a success is, for each of the B rows of a batch.
            rows: int64 [R], the row of each point; None = all rows in order, R = B.
        """
        inside, logits = self._inside(x, x_adv), self._passes(x_adv)
        votes = _votes(logits, criterion, rows)
        hit = _majority(votes) & inside
        return Ruling(hit, _mode(logits, votes | ~hit), self._ball.distance(x, x_adv), inside, logits.mean(0))

    def _inside(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """bool [R]: the points that may count; the others are added to `refused_rows`."""
        if self._bounded:
            inside = self._ball.contains(x, x_adv)
        else:
            boxed = (x_adv >= self._ball.low) & (x_adv <= self._ball.high)  # a NaN is in no box
            inside = boxed.flatten(1).all(1)
        self.refused_rows += int((~inside).sum())
        return inside

    def _passes(self, x: Tensor) -> Tensor:
        """Logits float32 [D, B, K] of all D draws at x [B, C, H, W]; broken rows are counted."""
        logits = self._draw(x, self._draws)
        self.broken_rows += int(_broken(logits).sum())
        return logits

    def _draw(self, x: Tensor, draws: int) -> Tensor:
        """Logits float32 [draws, B, K]: fresh passes of the original model over x [B, C, H, W]."""
        if not len(x):
            return x.new_zeros(draws, 0, 2)
        self.forward_rows += len(x) * draws
        with torch.no_grad(), exact_fp32():
            point = x if self._counted else padded(x)
            return torch.stack([self._model(point)[: len(x)].float() for _ in range(draws)])


def _broken(logits: Tensor) -> Tensor:
    """bool [B]: rows of logits [D, B, K] that are not finite in some draw."""
    return (~torch.isfinite(logits)).any(2).any(0)


def _votes(logits: Tensor, criterion: Criterion, rows: Tensor | None) -> Tensor:
    """bool [D, R]: success per draw, from logits [D, R, K]."""
    return torch.stack([criterion.hit(draw, rows) for draw in logits])


def _majority(votes: Tensor) -> Tensor:
    """bool [R]: whether more than half of the D votes [D, R] are true."""
    return 2 * votes.sum(0) > len(votes)


def _mode(logits: Tensor, counted: Tensor | None = None) -> Tensor:
    """int64 [R]: the most frequent argmax among the D draws of logits [D, R, K].

    Of equally frequent classes it is the one of smallest number. counted: bool [D, R], the draws that have a
    say, at least one of each row; None = all.
    """
    if len(logits) == 1:
        return logits[0].argmax(1)
    named = torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2])
    if counted is not None:
        named = named * counted[:, :, None]
    return named.sum(0).argmax(1)
