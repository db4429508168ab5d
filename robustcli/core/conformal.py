"""Thresholds of detectors by split-conformal prediction: the joint share of false alarms is guaranteed.

A clean image is rejected where some detector i has s_i > t_i. Of n calibration images and a new one, all
drawn alike, each is as likely to have the k-th smallest value. With k = ceil((n + 1)(1 - fpr)) the new one
exceeds it with a probability <= fpr, and without ties >= fpr - 1/(n + 1). This holds for any thresholds
t_i(c) that grow with c, where c is calibrated.

Source: Vovk, Gammerman & Shafer 2005; Lei et al., JASA 113, 2018, arXiv:1604.04173.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.proportions import Interval, beta_interval


@dataclass(frozen=True)
class Thresholds:
    """What calibration found.

    Args:
        thresholds, spreads: float32 [D]; spreads > 0.
        n: images behind the quantile. spread_n: those behind the spreads.
        rank: k. The threshold of one detector is the k-th smallest of n scores.
        alarms: of the n images, those that are rejected: at most n - k, and fewer with ties.
    """

    thresholds: Tensor
    spreads: Tensor
    n: int
    spread_n: int
    rank: int
    alarms: int

    @property
    def interval(self) -> Interval:
        """95 % interval of the share of clean images that these thresholds reject, a Beta(n + 1 - k, k).

        That is its distribution over calibration sets. With ties the share is lower.
        """
        return beta_interval(self.n + 1 - self.rank, self.rank)


def rank_of(n: int, fpr: float) -> int:
    """k = ceil((n + 1)(1 - fpr)); more than n where n images are too few."""
    return n + 1 - math.floor((n + 1) * fpr + 1e-9)  # 20 * 0.05 is 1, whatever floating point says


def fewest(fpr: float, detectors: int) -> int:
    """The smallest number of calibration images for which there are thresholds."""
    n = max(1, math.ceil(1 / fpr - 1 - 1e-9))
    while rank_of(n, fpr) > n:
        n += 1
    return n if detectors < 2 else max(2, 2 * n - 1)


def conformal(scores: Tensor, fpr: float, highest: Sequence[float] | None = None) -> Thresholds:
    """Thresholds at which all detectors together reject at most a share `fpr` of clean images.

    One detector: the k-th smallest score. Several: on the first half of the images the spread d_i and a
    provisional quantile q_i of each; on the second the k-th smallest c of max_i (s_i - q_i) / d_i; then
    t_i = q_i + c d_i. A score with a bound b_i is calibrated as -log(b_i - s_i), which has none: its
    threshold stays below b_i however large c is, so that the detector can alarm.

    Args:
        scores: float [n, D] of clean images that no detector was fitted on, in random order.
        fpr: in (0, 1).
        highest: b_i, which no score of detector i lies above; infinite where there is no bound. None: no
            score has one.

    Raises ValueError for scores that are not finite, or fewer than `fewest` images.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if len(scores) < fewest(fpr, scores.shape[1]):
        raise ValueError(f"{len(scores)} images are too few for a rate of {fpr:g}")
    scores = scores.double()
    first, second = _parts(scores)
    n = len(second)
    rank = rank_of(n, fpr)
    if scores.shape[1] == 1:
        thresholds = second.sort(0).values[rank - 1]
    else:
        bounds = torch.tensor(highest or [math.inf] * scores.shape[1], dtype=torch.float64)
        thresholds = _joint(first, second, fpr, rank, bounds)
    thresholds = _rounded_up(thresholds)
    return Thresholds(thresholds, _spreads(first).float(), n, len(first), rank, _alarms(second, thresholds))


def _joint(first: Tensor, second: Tensor, fpr: float, rank: int, bounds: Tensor) -> Tensor:
    """The thresholds [D] of several detectors, see `conformal`; bounds: b [D]."""
    first, placed = _unbounded(first, bounds), _unbounded(second, bounds)
    provisional, spreads = first.quantile(1 - fpr, 0), _spreads(first)
    excess = ((placed - provisional) / spreads).amax(1)
    c = excess.sort().values[rank - 1]
    found = provisional + c * spreads
    thresholds = torch.where(bounds.isfinite(), bounds - (-found).exp(), found)
    return torch.maximum(thresholds, second[excess <= c].amax(0))  # whatever was lost to rounding


def _unbounded(scores: Tensor, bounds: Tensor) -> Tensor:
    """-log(b_i - s_i) where b_i is finite, with at least one part in 10^9 of room; s_i elsewhere."""
    room = torch.maximum(bounds - scores, 1e-9 * bounds.abs().clamp_min(1e-9))
    return torch.where(bounds.isfinite(), -room.log(), scores)


def _parts(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(scores for the spreads, scores for the quantile); one detector needs no spread to be compared."""
    if scores.shape[1] == 1:
        return scores, scores
    half = len(scores) // 2
    return scores[:half], scores[half:]


def _alarms(scores: Tensor, thresholds: Tensor) -> int:
    return int((scores > thresholds).any(1).sum())


def _spreads(scores: Tensor) -> Tensor:
    """Standard deviation of each column, in float32's precision; 1 where all scores are the same."""
    spreads = scores.std(0, correction=0).float().double()
    return torch.where(spreads > 0, spreads, torch.ones_like(spreads))


def _rounded_up(values: Tensor) -> Tensor:
    """The smallest float32 that is not below each float64."""
    rounded = values.float()
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.double() < values, above, rounded)
