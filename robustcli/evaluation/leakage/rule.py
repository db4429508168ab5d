"""Which distances are those of copies: a rule that honest images calibrate, so that a count has a meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_FEWEST = 40  # images of test and of training, below which nothing is calibrated
_FARTHEST = 0.5  # no image that is farther than half of the usual distance is called a copy
_SPREADS = 6.0  # standard deviations between an honest image and a copy
_FALSE = 0.05  # images that the rule may call copies by chance, where honest ones show none
_LEVEL = 0.01  # an honest set has as many with less than this probability


@dataclass(frozen=True)
class Rule:
    """A near copy is closer to a test image than `ratio` times the nearest training image is.

    Args:
        ratio: c = min(1/2, exp(-6 s)) min(1, (n_train / n_extra)^(1/m)).
        spread: s, of log(d_A / d_B), where A and B are halves of the training images: half of the range that
            80 % of the test images have, in standard deviations of a normal law. Copies do not move it.
        growth: 1/m: by the power m of the number of images does a nearest distance fall; from d_A and d_AB.
        honest: test images that have a near copy in the training images: in one half of them, judged by the
            other half; the sum of both.
    """

    ratio: float
    spread: float
    growth: float
    honest: int

    @classmethod
    def of(cls, halves: Tensor, train: int, extra: int) -> Rule | None:
        """The rule of these data; None where they are too few.

        Args:
            halves: float [2, n], distance of each test image to the nearest of each half of the training.
            train, extra: how many images these are.
        """
        if halves.shape[1] < _FEWEST or train < _FEWEST:
            return None
        a, b = halves.double().clamp_min(1e-9)
        logs = (a / b).log()
        low, high = torch.quantile(torch.cat([logs, -logs]), torch.tensor([0.1, 0.9]).double()).tolist()
        spread = (high - low) / (2 * 1.2816)
        gained = torch.cat([(one / torch.minimum(a, b)).log() for one in (a, b)])
        gained = gained.clamp(max=_SPREADS * spread)  # a copy says nothing of the others
        growth = float(gained.mean()) / math.log(2)
        base = min(_FARTHEST, math.exp(-_SPREADS * spread))
        honest = int((a <= base * b).sum() + (b <= base * a).sum())
        return cls(base * min(1.0, (train / extra) ** growth), spread, growth, honest)

    def near(self, distance: Tensor, reference: Tensor) -> Tensor:
        """bool [n]: which test images have a near copy. reference: distance to the nearest training image."""
        return distance <= self.ratio * reference.clamp_min(1e-9)

    def chance(self, near: int) -> float:
        """P(`near` copies or more) where the training images are as honest: a Poisson law of their count."""
        if near == 0:
            return 1.0
        expected = torch.tensor(max(float(self.honest), _FALSE), dtype=torch.float64)
        return float(torch.special.gammainc(torch.tensor(float(near), dtype=torch.float64), expected))

    def unlikely(self, near: int) -> bool:
        """Whether it has more than the training images themselves, beyond chance."""
        return self.chance(near) < _LEVEL

    @property
    def words(self) -> str:
        """The rule in one sentence."""
        return f"closer than {self.ratio:.3g} of the distance to the nearest training image"
