"""What was measured of one quantity, and what follows from it: one-sided, with a stated error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from robustcli.config.thresholds import Bound
from robustcli.gating.paired import drop_interval, p_no_less, p_no_more
from robustcli.proportions import Interval, Rate, clopper_pearson

#: The error of one threshold: how often its verdict is wrong at most, over all looks together.
ALPHA = 0.05


class Evidence(Protocol):
    """A measured quantity. alpha: the error that a statement may have, in (0, 1/2)."""

    @property
    def value(self) -> float:
        """As measured."""

    @property
    def n(self) -> int:
        """Samples that it was measured on, >= 1."""

    def interval(self, alpha: float) -> Interval:
        """One-sided bounds, for display."""

    def missed(self, bound: Bound, limit: float, alpha: float) -> bool:
        """Whether the true quantity is surely on the wrong side of the limit."""

    def reached(self, bound: Bound, limit: float, alpha: float) -> bool:
        """Whether the true quantity is surely on the right side of the limit, or at it."""


class _ByInterval:
    """Missed when the whole interval is on the wrong side, reached when all of it is on the right one."""

    def interval(self, alpha: float) -> Interval:
        raise NotImplementedError

    def missed(self, bound: Bound, limit: float, alpha: float) -> bool:
        low, high = self.interval(alpha)
        return high < limit if bound == "min" else low > limit

    def reached(self, bound: Bound, limit: float, alpha: float) -> bool:
        low, high = self.interval(alpha)
        return low >= limit if bound == "min" else high <= limit


@dataclass(frozen=True)
class Share(_ByInterval):
    """k of n: each end of the interval is wrong with probability alpha at most (Clopper and Pearson)."""

    rate: Rate

    @property
    def value(self) -> float:
        return self.rate.value

    @property
    def n(self) -> int:
        return self.rate.n

    def interval(self, alpha: float) -> Interval:
        return clopper_pearson(self.rate.k, self.rate.n, 1 - 2 * alpha)


@dataclass(frozen=True)
class WorstClass(_ByInterval):
    """The least share among K classes.

    That one class is too low may be said of any of them, so each is given alpha / K (Bonferroni). That all
    are high enough needs all of them, each at alpha (intersection-union).
    """

    classes: Mapping[str, Rate]

    @property
    def name(self) -> str:
        """The class whose share is least."""
        return min(self.classes, key=lambda name: self.classes[name].value)

    @property
    def value(self) -> float:
        return self.classes[self.name].value

    @property
    def n(self) -> int:
        return self.classes[self.name].n

    def interval(self, alpha: float) -> Interval:
        rates = self.classes.values()
        each = alpha / len(rates)
        low = min(clopper_pearson(rate.k, rate.n, 1 - 2 * alpha)[0] for rate in rates)
        return low, min(clopper_pearson(rate.k, rate.n, 1 - 2 * each)[1] for rate in rates)


@dataclass(frozen=True)
class Drop:
    """How much lower the run is than its baseline, on n common samples; see `gating.paired`."""

    lost: int
    gained: int
    n: int

    @property
    def value(self) -> float:
        return (self.lost - self.gained) / self.n

    def interval(self, alpha: float) -> Interval:
        return drop_interval(self.lost, self.gained, self.n, alpha)

    def missed(self, bound: Bound, limit: float, alpha: float) -> bool:
        return p_no_more(self.lost, self.gained, self.n, limit, alpha) <= alpha

    def reached(self, bound: Bound, limit: float, alpha: float) -> bool:
        return p_no_less(self.lost, self.gained, self.n, limit, alpha) <= alpha
