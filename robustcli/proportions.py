"""Proportions k of n, their confidence intervals, and exact tests of paired verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

Interval = tuple[float, float]


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """[B(a/2; k, n-k+1), B(1-a/2; k+1, n-k)],  a = 1 - level, B the beta quantile: exact and two-sided.

    It covers the true proportion with probability >= level for every n; 0 and 1 are its ends at k = 0 and k =
    n. Of no samples (n = 0) nothing is known: [0, 1]. Raises ValueError unless 0 <= k <= n and 0 < level < 1.
    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    from scipy.special import betaincinv  # scipy.stats gives the same numbers, a second later

    _check(k, n, level)
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def beta_interval(a: int, b: int, level: float = 0.95) -> Interval:
    """The middle `level` of a Beta(a, b) variable, a, b >= 1, which lies in [0, 1]."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    return float(betaincinv(a, b, tail)), float(betaincinv(a, b, 1 - tail))


def sign_test(gained: int, lost: int) -> float:
    """P(X >= gained), X ~ Binomial(gained + lost, 1/2): how likely chance alone favours one verdict so much.

    McNemar's exact test, one-sided; 1 without discordant pairs. Source: McNemar, Psychometrika 12, 1947.
    """
    from scipy.special import betainc

    return float(betainc(gained, lost + 1, 0.5)) if gained else 1.0


def mcnemar(b: int, c: int) -> float:
    """min(1, 2 P(X >= max(b, c))),  X ~ Binomial(b + c, 1/2): p that two verdicts differ by chance.

    b, c: samples that only the one, only the other broke, >= 0. Source: McNemar, Psychometrika 12, 1947; the
    exact form of his test.
    """
    return min(1.0, 2 * sign_test(max(b, c), min(b, c)))


def paired_interval(gained: int, lost: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of the difference (gained - lost) / n of two proportions of the same n samples.

    It holds the differences d in [-1, 1] with |gained - lost - n d| <= z sqrt(n (2 q + d (1 - d))), where q
    is the most likely share of lost samples if d were true. gained, lost: samples that are right only in the
    second, only in the first. n = 0: [-1, 1].
    Raises ValueError unless gained, lost >= 0, gained + lost <= n and 0 < level < 1.
    Source: Tango, Statistics in Medicine 17, 1998.
    """
    _check(gained, n, level)
    _check(lost, n - gained, level)
    if not n:
        return -1.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    upper = _border(gained, lost, n, z)
    return -_border(lost, gained, n, z), upper


def unpaired_interval(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> Interval:
    """[d - sqrt((p2 - l2)^2 + (u1 - p1)^2), d + sqrt((u2 - p2)^2 + (p1 - l1)^2)],  d = p2 - p1, p = k / n.

    An interval of the difference of two proportions of independent samples; [l, u] is Wilson's of each.
    Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < level < 1.
    Source: Newcombe, Statistics in Medicine 17, 1998, 873-890, method 10.
    """
    if not (n1 and n2):
        raise ValueError("a difference needs samples on both sides")
    (l1, u1), (l2, u2) = wilson(k1, n1, level), wilson(k2, n2, level)
    p1, p2 = k1 / n1, k2 / n2
    low, high = math.hypot(p2 - l2, u1 - p1), math.hypot(u2 - p2, p1 - l1)
    return p2 - p1 - low, p2 - p1 + high


def _border(gained: int, lost: int, n: int, z: float) -> float:
    """The largest difference whose score is at most z, to 1e-12: the score grows with the difference."""
    low, high = (gained - lost) / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _score(gained, lost, n, middle) <= z:
            low = middle
        else:
            high = middle
    return high


def _score(gained: int, lost: int, n: int, d: float) -> float:
    """How many standard deviations the difference d lies above the one that was measured."""
    b = (2 * n - gained + lost) * d - gained - lost
    q = (math.sqrt(max(0.0, b * b + 8 * n * lost * d * (1 - d))) - b) / (4 * n)
    spread = math.sqrt(max(0.0, n * (2 * q + d * (1 - d))))
    distance = n * d - gained + lost
    if spread == 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / spread


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion:  (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),  p = k/n.

    Closer to its level on average than Clopper-Pearson: for display. n = 0 and errors as for
    `clopper_pearson`.
    Source: Wilson, JASA 22, 1927.
    """
    _check(k, n, level)
    if not n:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, extra = k / n, z * z / n
    middle = (p + extra / 2) / (1 + extra)
    half = z * math.sqrt(p * (1 - p) / n + extra / (4 * n)) / (1 + extra)
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def _check(k: int, n: int, level: float) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"a proportion needs 0 <= k <= n, got k={k}, n={n}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")


@dataclass(frozen=True)
class Rate:
    """k of n. Raises ValueError unless 0 <= k <= n and n >= 1."""

    k: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.k <= self.n:
            raise ValueError(f"a rate needs 0 <= k <= n and n >= 1, got k={self.k}, n={self.n}")

    @property
    def value(self) -> float:
        """k / n."""
        return self.k / self.n

    @property
    def exact(self) -> Interval:
        """95 % Clopper-Pearson: for JSON, CSV and verdicts."""
        return clopper_pearson(self.k, self.n)

    @property
    def display(self) -> Interval:
        """95 % Wilson: for the screen."""
        return wilson(self.k, self.n)

    def above(self, chance: float) -> bool:
        """Whether the whole 95 % Clopper-Pearson interval lies above `chance`, in [0, 1]."""
        return self.exact[0] > chance


def at_chance(clean: Rate | None, robust: Rate | None, chance: float) -> str:
    """One sentence where an accuracy is not surely above `chance`; "" where both are, or were not measured.

    chance: the share of the same samples that one answer for all of them gets right, in (0, 1]. Clean
    accuracy is looked at first.
    """
    for name, rate in (("clean accuracy", clean), ("robust accuracy", robust)):
        if rate is not None and not rate.above(chance):
            low, high = rate.display
            shown = f"{name} {100 * rate.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            return (
                f"{shown} is not surely above chance: one answer for all images reaches {100 * chance:.1f} %."
            )
    return ""
