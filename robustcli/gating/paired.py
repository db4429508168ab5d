"""Exact one-sided tests of the difference of two accuracies on the same samples.

`lost` samples were right under the baseline alone, `gained` ones under the new run alone, of n. The drop is
d = P(lost) - P(gained). With q = P(lost) + P(gained), lost given m = lost + gained discordant samples is
Binomial(m, (1 + d/q) / 2). At d = 0 that is 1/2 whatever q is, and the test is McNemar's exact one. At
another d the unknown q is bounded first, and the worst q in the bounds counts (Berger and Boos, JASA 89,
1994).
"""

from __future__ import annotations

from collections.abc import Callable

from robustcli.proportions import clopper_pearson, sign_test

_SHARE = 0.1  # of alpha, that the bounds of q may be wrong
_HALVINGS = 40


def p_no_more(lost: int, gained: int, n: int, margin: float, alpha: float) -> float:
    """p of "the drop is at most `margin`": small where the samples say that it is more.

    Under a drop of at most `margin`, P(p <= alpha) <= alpha for every n and every q. margin: in [-1, 1].
    """
    if margin == 0:
        return sign_test(lost, gained)
    wrong = _SHARE * alpha
    low, high = clopper_pearson(lost + gained, n, 1 - 2 * wrong)  # each end is wrong at most so often
    if margin > 0:
        return min(1.0, wrong + _tail(lost, gained, margin, low))
    if high < -margin:  # so few differ that a gain of -margin cannot be
        return wrong
    return min(1.0, wrong + _tail(lost, gained, margin, high))


def p_no_less(lost: int, gained: int, n: int, margin: float, alpha: float) -> float:
    """p of "the drop is at least `margin`": small where the samples say that it is less."""
    return p_no_more(gained, lost, n, -margin, alpha)


def drop_interval(lost: int, gained: int, n: int, alpha: float) -> tuple[float, float]:
    """(low, high): one-sided bounds of the drop, each wrong at most with probability alpha, for display."""
    low = _bisected(lambda margin: p_no_more(lost, gained, n, margin, alpha) <= alpha)
    high = -_bisected(lambda margin: p_no_more(gained, lost, n, margin, alpha) <= alpha)
    return low, high


def _tail(lost: int, gained: int, margin: float, discordant: float) -> float:
    """P(X >= lost), X ~ Binomial(lost + gained, (1 + margin / discordant) / 2)."""
    from scipy.special import betainc

    chance = 1.0 if margin >= discordant else max(0.0, (1 + margin / discordant) / 2)
    return float(betainc(lost, gained + 1, chance)) if lost else 1.0


def _bisected(refused: Callable[[float], bool]) -> float:
    """The largest margin in [-1, 1] that is refused; all smaller ones are."""
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if refused(middle):
            low = middle
        else:
            high = middle
    return low
