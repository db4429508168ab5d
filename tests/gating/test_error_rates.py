"""How often a gate errs: by enumeration of all outcomes, so that no seed decides."""

import numpy as np
import pytest
from scipy.stats import binom

from robustcli.config.thresholds import Quantity
from robustcli.gating.evidence import ALPHA, Drop, Share, WorstClass
from robustcli.gating.looks import LOOKS, alpha_of
from robustcli.gating.paired import drop_interval, p_no_less, p_no_more
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import judge
from robustcli.proportions import Rate, sign_test

LIMITS = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
BELOW = 1e-9  # of rounding


def floor(limit, mode="evidence"):
    return Threshold(Quantity("robust_acc"), limit, mode)


def words(limit, n, alpha, mode="evidence", metric="robust_acc"):
    """The verdict of every count k of n. Verdicts change at most twice, so most of them need no interval."""
    threshold = Threshold(Quantity(metric), limit, mode)

    def word(k):
        return judge(threshold, Share(Rate(k, n)), alpha).word

    found = np.empty(n + 1, dtype=object)
    stack = [(0, n, word(0), word(n))]
    while stack:
        low, high, first, last = stack.pop()
        if first == last or high - low < 2:
            found[low : high + 1] = first
            found[high] = last
            continue
        middle = (low + high) // 2
        here = word(middle)
        stack += [(low, middle, first, here), (middle, high, here, last)]
    return found


def chance(mask, n, p):
    return float(binom.pmf(np.arange(n + 1), n, p)[mask].sum())


@pytest.mark.parametrize("limit", LIMITS)
def test_one_look_at_a_thousand_samples(limit):
    """At the limit evidence fails in 5 % at most; five points below it in 92 % at least."""
    failed = words(limit, 1000, ALPHA) == "FAIL"
    assert chance(failed, 1000, limit) <= 0.05
    assert chance(failed, 1000, limit - 0.05) >= 0.92
    for better in (limit + 0.01, min(1.0, limit + 0.1)):
        assert chance(failed, 1000, better) < chance(failed, 1000, limit)


@pytest.mark.parametrize("n", [1, 7, 40, 333])
@pytest.mark.parametrize("limit", [0.02, 0.3, 0.5, 0.97])
def test_no_count_of_samples_breaks_the_promise(n, limit):
    """Evidence fails, and prove passes, a model at the limit in 5 % at most; for a ceiling as for a floor."""
    for metric in ("robust_acc", "attack_success"):
        found = words(limit, n, ALPHA, metric=metric)
        assert chance(found == "FAIL", n, limit) <= ALPHA
        just_missed = limit - BELOW if metric == "robust_acc" else limit + BELOW
        assert chance(found == "PASS", n, just_missed) <= ALPHA


@pytest.mark.parametrize("limit", LIMITS)
def test_two_looks_keep_the_error_of_one(limit):
    """512 samples, and 2,000 that hold them where that was inconclusive: all outcomes of both, weighed."""
    first, second = LOOKS
    alpha = alpha_of(look=0, more=True)
    assert alpha == alpha_of(look=1, more=False) == ALPHA / 2 and alpha_of(look=0, more=False) == ALPHA
    early, late = words(limit, first, alpha), words(limit, second, alpha)
    for word, p, most in (("FAIL", limit, ALPHA), ("PASS", limit - BELOW, ALPHA)):
        assert total(early, late, word, p) <= most
    power = total(early, late, "FAIL", limit - 0.05)
    assert power >= 0.92 and power >= chance(words(limit, 1000, ALPHA) == "FAIL", 1000, limit - 0.05)


def total(early, late, word, p):
    """P(the verdict of the gate is `word`) where the second look keeps the samples of the first."""
    first, second = len(early) - 1, len(late) - 1
    start = binom.pmf(np.arange(first + 1), first, p)
    rest = binom.pmf(np.arange(second - first + 1), second - first, p)
    undecided = np.where(early == "INCONCLUSIVE", start, 0.0)
    at_end = np.convolve(undecided, rest)
    return float(start[early == word].sum() + at_end[late == word].sum())


def test_the_worst_of_many_classes_is_no_false_alarm():
    """Ten classes of 50 at the limit: that any of them fails is rarer than alpha; one bad class is found."""
    limit, n, k = 0.6, 50, 10
    threshold = Threshold(Quantity("worst_class_robust_acc"), limit)

    def word(low):
        rates = {str(i): Rate(45, n) for i in range(k - 1)} | {"bad": Rate(low, n)}
        return judge(threshold, WorstClass(rates)).word

    failing = np.array([word(low) == "FAIL" for low in range(n + 1)])
    assert 1 - (1 - chance(failing, n, limit)) ** k <= ALPHA
    assert word(10) == "FAIL" and word(29) == "INCONCLUSIVE" and word(45) == "PASS"


# ---- a drop against a baseline -----------------------------------------------------------------------------


def outcomes(n, p_lost, p_gained):
    """(lost, gained, probability) of every outcome of n samples."""
    lost = np.arange(n + 1)
    for k, weight in zip(lost, binom.pmf(lost, n, p_lost), strict=True):
        share = p_gained / (1 - p_lost)
        for j, below in enumerate(binom.pmf(np.arange(n - k + 1), n - k, share)):
            yield int(k), j, weight * below


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_a_drop_is_judged_exactly(margin):
    """At a true drop of the margin both statements err in 5 % at most, whatever share of samples differs."""
    n = 30
    spent = [
        (p_no_more(k, j, n, margin, ALPHA) <= ALPHA, p_no_less(k, j, n, margin, ALPHA) <= ALPHA)
        for k in range(n + 1)
        for j in range(n - k + 1)
    ]
    place = {pair: i for i, pair in enumerate((k, j) for k in range(n + 1) for j in range(n - k + 1))}
    for gained in (0.001, 0.02, 0.1, 0.25, 0.39):
        rows = [(spent[place[k, j]], weight) for k, j, weight in outcomes(n, gained + margin, gained)]
        for side in (0, 1):
            assert sum(weight for said, weight in rows if said[side]) <= ALPHA + 1e-9


def test_without_a_margin_it_is_mcnemars_test():
    for lost, gained in ((0, 0), (1, 0), (9, 1), (30, 12), (12, 30)):
        assert p_no_more(lost, gained, 100, 0.0, ALPHA) == sign_test(lost, gained)
        assert p_no_less(lost, gained, 100, 0.0, ALPHA) == sign_test(gained, lost)


def test_a_clear_drop_is_found_and_no_drop_is_proven():
    threshold = Threshold(Quantity("robust_acc_drop"), 0.02)
    assert judge(threshold, Drop(200, 60, 2000)).word == "FAIL"  # seven points
    assert judge(threshold, Drop(5, 5, 2000)).word == "PASS"  # so few differ that no two points can be lost
    assert judge(threshold, Drop(60, 30, 2000)).word == "INCONCLUSIVE"
    assert judge(Threshold(Quantity("robust_acc_drop"), 0.0), Drop(0, 0, 500)).word == "INCONCLUSIVE"
    low, high = drop_interval(200, 60, 2000, ALPHA)
    assert 0.045 < low < 0.07 < high < 0.095
    low, high = drop_interval(60, 200, 2000, ALPHA)
    assert -0.095 < low < -0.07 < high < -0.045
