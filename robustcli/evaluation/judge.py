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

_SURE = 0.9  # share of the draws


@contextmanager
def exact_fp32() -> Iterator[None]:
    """No autocast and no TF32 inside: cuDNN convolutions use TF32 by default, which moves borderline verdicts."""
    with tf32_products(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@dataclass(frozen=True)
class Ruling:
    """What the judge found for each row: success, label predicted now, distance float64, inside ball and box, logits (mean over draws)."""

    hit: Tensor
    predicted: Tensor
    distance: Tensor
    inside: Tensor
    logits: Tensor


class Clean(NamedTuple):
    """What the judge sees on clean images: logits [B, K], mean over draws; right bool [B], finite and of label y."""

    logits: Tensor
    right: Tensor


class Judge:
    """Re-predicts with the original model in fp32 and re-measures in float64.

    Args:
        model: the original classifier, held frozen in eval mode by the caller.
        ball: the threat; points outside it never count, whatever the model says of them.
        draws: for a randomised model, passes per question: the majority of fresh draws decides, and half of them is no success.
        bounded: False for threats that no radius describes (rotations, corruptions): only finite points in the pixel box are asked for.

    Raises ValueError if draws < 1. `forward_rows`, `refused_rows` and `broken_rows` count what was asked of the model, what lay outside, and
    answers with NaN or Inf.
    """

    def __init__(self, model: nn.Module, ball: Ball, *, draws: int = 1, bounded: bool = True) -> None:
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        self._model, self._ball, self._draws, self._bounded = model, ball, draws, bounded
        self.forward_rows = 0
        self.refused_rows = 0
        self.broken_rows = 0

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] float32 of the original model, no gradient; the mean over the draws."""
        return self._passes(x).mean(0)

    def clean(self, x: Tensor, y: Tensor) -> Clean:
        """Logits of x and who is right; of a randomised model the majority of fresh draws says who is."""
        logits = self.logits(x)
        label = self.label(x) if self._draws > 1 else logits.argmax(1)
        return Clean(logits, (label == y) & torch.isfinite(logits).all(1))

    def label(self, x: Tensor) -> Tensor:
        """int64 [B]: the class that most draws predict, the smallest of equals."""
        return _mode(self._passes(x))

    def success_rate(self, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Tensor:
        """float32 [R]: share of the draws in which each point is a success; 1 - its mean over all samples is the accuracy of one random draw."""
        return _votes(self._passes(x_adv), criterion, rows).float().mean(0)

    def hits(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Tensor:
        """bool [R], as `rule`, but the model is asked only about the points that may count: for candidates of a running attack.

        With several draws nine of ten must be successes, so that the verdict on fresh draws is not in doubt.
        """
        hit = self._inside(x, x_adv)
        asked = hit.nonzero()[:, 0]
        if len(asked):
            of = asked if rows is None else rows[asked]
            votes = _votes(self._passes(x_adv[asked]), criterion, of)
            # A search that stopped at its first lucky majority would be refused by the fresh draws of `rule`.
            hit[asked] = votes.float().mean(0) >= _SURE if len(votes) > 1 else _majority(votes)
        return hit

    def rule(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Ruling:
        """Decide the rows `rows` of `criterion` (all by default); x and x_adv hold just these rows, [R, C, H, W]."""
        inside, logits = self._inside(x, x_adv), self._passes(x_adv)
        hit = _majority(_votes(logits, criterion, rows)) & inside
        return Ruling(hit, _mode(logits), self._ball.distance(x, x_adv), inside, logits.mean(0))

    def _inside(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """bool [R]: points that count; the others are counted as refused."""
        if self._bounded:
            inside = self._ball.contains(x, x_adv)
        else:
            inside = (
                ((x_adv >= self._ball.low) & (x_adv <= self._ball.high)).flatten(1).all(1)
            )  # a NaN is in no box
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


def _majority(votes: Tensor) -> Tensor:
    """bool [R]: more than half of the votes [D, R]."""
    return 2 * votes.sum(0) > len(votes)


def _mode(logits: Tensor) -> Tensor:
    """int64 [R]: the most frequent argmax over the draws of [D, R, K]."""
    if len(logits) == 1:
        return logits[0].argmax(1)
    return torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2]).sum(0).argmax(1)
