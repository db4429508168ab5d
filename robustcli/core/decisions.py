"""What searches that see labels alone share: a budget of queries per row, a first success, the way back."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.core.geometry import Ball, column
from robustcli.core.oracle import Oracle

#: Sides of the squares, in parts of the image, that a start draws one colour each for; 0: each pixel its own.
_GRAINS = (0, 4, 0, 2, 8, 1)
_STARTS = 6  # successes that are compared before the search begins from the nearest
_TRIES = 24  # draws after which a row that has any success begins with it
_TINY = 1e-12


class Decisions:
    """The rows of a search, each with its budget and its nearest success.

    All methods take and give tensors of the R rows that are still in play. `leave` takes rows out.

    Args:
        oracle: answers whether points are successes.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm ("l2" or "linf") and box; its radius does not matter.
        queries: model passes per row, >= 1: those of the oracle before now and its look at the last point
            are among them.

    Attributes:
        x, best: clean pixels and nearest successes [R, C, H, W]; x itself where there is none yet.
        far: distance of `best` [R], inf where there is none, 0 where the clean point is one.
        left: int64 [R], queries that are left; the one for the last point is put aside.
        spent: int64 [R], queries so far.
    """

    def __init__(self, oracle: Oracle, x: Tensor, ball: Ball, queries: int) -> None:
        self.oracle, self.ball = oracle, ball
        before = oracle.passes // max(1, len(x))
        self.x, self.best = x, x
        wrong = oracle.hit(oracle.clean()) if before else torch.zeros(len(x), dtype=torch.bool).to(x.device)
        self.far = torch.full_like(x[:, 0, 0, 0], math.inf).masked_fill(wrong, 0.0)
        self.spent = torch.full((len(x),), before, dtype=torch.int64, device=x.device)
        self.left = torch.full_like(self.spent, queries - 1 - before).masked_fill(wrong, 0)

    def ask(self, points: Tensor, rows: Tensor) -> Tensor:
        """bool [N]: which points [N, C, H, W] are successes; each costs its row, int64 [N], one query."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=points.device)
        one = torch.ones_like(rows)
        self.left.index_add_(0, rows, -one)
        self.spent.index_add_(0, rows, one)
        return self.oracle.decide(points, rows)

    def length(self, points: Tensor, rows: Tensor) -> Tensor:
        """||points - x|| [N] in the ball's norm; rows: int64 [N]."""
        way = (points - self.x[rows]).flatten(1)
        if self.ball.norm == "linf":
            return way.abs().amax(1)
        length: Tensor = torch.linalg.vector_norm(way, dim=1)
        return length

    def keep(self, points: Tensor, rows: Tensor) -> None:
        """Take successes [N, C, H, W] of different rows that are nearer than the best so far."""
        far = self.length(points, rows)
        nearer = far < self.far[rows]
        rows = rows[nearer]
        if not len(rows):
            return
        self.best = self.best.index_copy(0, rows, points[nearer])
        self.far = self.far.index_copy(0, rows, far[nearer])
        self.oracle.found(rows, self.spent[rows], self.far[rows])

    def leave(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Meet the best points; rows that fall leave, also from `tensors` [R, ...], which come back."""
        self.oracle.meet_hits(self.best, torch.isfinite(self.far))
        own = (self.x, self.best, self.far, self.left, self.spent)
        self.x, self.best, self.far, self.left, self.spent, *others = self.oracle.compact(*own, *tensors)
        return tuple(others)

    def toward(self, points: Tensor, share: Tensor, rows: Tensor) -> Tensor:
        """Points between x (share 0) and `points` (share 1), [N, C, H, W], at this share [N] of the distance.

        l2: on the line. linf: `points` cut to the smaller ball, which changes all the largest pixels at once.
        """
        clean = self.x[rows]
        way = points - clean
        share = column(share, way)
        if self.ball.norm == "linf":
            radius = share * column(way.flatten(1).abs().amax(1), way)
            return clean + torch.minimum(torch.maximum(way, -radius), radius)
        return clean + share * way

    def back(self, points: Tensor, rows: Tensor, halvings: int) -> Tensor:
        """Successes [N, C, H, W] of different rows, moved towards x by bisection: just before failure."""
        low, high = torch.zeros_like(self.far[rows]), torch.ones_like(self.far[rows])
        for _ in range(halvings):
            able = (self.left[rows] > 0).nonzero()[:, 0]
            if not len(able):
                break
            middle = (low + high) / 2
            hit = torch.zeros_like(low, dtype=torch.bool)
            hit[able] = self.ask(self.toward(points[able], middle[able], rows[able]), rows[able])
            asked = torch.zeros_like(hit)
            asked[able] = True
            high, low = torch.where(hit, middle, high), torch.where(asked & ~hit, middle, low)
        moved = torch.where(column(high < 1, points), self.toward(points, high, rows), points)
        self.keep(moved, rows)
        return moved

    def begin(self, halvings: int) -> None:
        """Look for successes until each row has compared `_STARTS` of them, or has spent its budget.

        Drawn in turn: noise pixel by pixel, and noise of a few large squares, which lies nearer to images.
        """
        found = torch.zeros_like(self.left)
        for turn in range(int(self.left.max()) if len(self.left) else 0):
            wants = (self.left > 0) & (found < _STARTS)
            wants &= (turn < _TRIES) | (found == 0)
            rows = wants.nonzero()[:, 0]
            if not len(rows):
                break
            points = self._start(turn)[rows]
            # Beyond the first success a start must be one at nine tenths of the distance of the best.
            share = (0.9 * self.far[rows] / self.length(points, rows).clamp_min(_TINY)).clamp_max(1.0)
            points = self.toward(points, share, rows)
            hit = self.ask(points, rows)
            found[rows[hit]] += 1
            self.back(points[hit], rows[hit], halvings)
            (found,) = self.leave(found)

    def _start(self, turn: int) -> Tensor:
        """Uniform noise [R, C, H, W] of the grain whose turn it is."""
        channels, height, width = self.x.shape[1:]
        grain = _GRAINS[turn % len(_GRAINS)]
        size = (grain or height, grain or width)
        noise = self.oracle.rng.uniform((channels, *size)).to(self.x.dtype)
        low, high = self.ball.low, self.ball.high
        return low + (high - low) * F.interpolate(noise, size=(height, width), mode="nearest")
