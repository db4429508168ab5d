"""Exact statements about the chance p of a class, from k hits in n draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustcli.proportions import mcnemar

# scipy's beta quantile is good to about 1e-14. What is taken off keeps P(X >= k) <= alpha after rounding.
_ROUNDING = 1e-13


def lower_bound(k: ArrayLike, n: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """The p with P(X >= k) = alpha, X ~ Binomial(n, p): below the true p with chance >= 1 - alpha.

    k, n: integers of one shape, 0 <= k <= n; 0 where k = 0. It is the beta quantile B(alpha; k, n - k + 1),
    rounded down.

    Source: Clopper and Pearson, Biometrika 26, 1934, one-sided.
    """
    from scipy.special import betaincinv

    hits, draws = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    quantile = betaincinv(np.maximum(hits, 1), draws - hits + 1, alpha)
    return np.where(hits > 0, np.maximum(quantile - _ROUNDING, 0), 0.0)


def upper_bound(k: ArrayLike, n: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """The p with P(X <= k) = alpha: above the true p with chance >= 1 - alpha; 1 where k = n."""
    return 1 - lower_bound(np.asarray(n) - np.asarray(k), n, alpha)


def tie_chance(first: int, second: int) -> float:
    """min(1, 2 P(X >= max(first, second))),  X ~ Binomial(first + second, 1/2): are two classes equal?

    first, second: hits of the two most frequent classes. The two-sided binomial test of Cohen's PREDICT.

    Source: Hung and Fithian, Annals of Statistics 47, 2019: valid though the data chose the two.
    """
    return mcnemar(first, second)
