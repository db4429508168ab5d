"""Early stops in 20,000 simulated samples: what they cost is what the budget says."""

import numpy as np
import pytest

from robustcli.certificates.binomial import lower_bound
from robustcli.certificates.sequential import FIRST, FUTILE, SHARE, hopeless, looks, spent, sure

SAMPLES = 20_000


def paths(p: float, n: int) -> dict[int, np.ndarray]:
    """Hits of 20,000 samples of chance p after each look and after n draws."""
    rng, hits, before, found = np.random.default_rng(5), np.zeros(SAMPLES, dtype=int), 0, {}
    for end in (*looks(n), n):
        hits = hits + rng.binomial(end - before, p, SAMPLES)
        found[end], before = hits, end
    return found


def over(test, hits: np.ndarray) -> np.ndarray:
    """A scalar test of hits, asked once for each number of hits."""
    values, place = np.unique(hits, return_inverse=True)
    return np.array([test(int(k)) for k in values])[place]


def test_the_shares_of_a_budget_sum_to_at_most_one():
    grid = list(looks(10**12))
    assert grid[:3] == [256, 512, 1024] == [FIRST, 2 * FIRST, 4 * FIRST]
    shares = [spent(look) for look in grid]
    assert shares[:3] == [1 / 2, 1 / 6, 1 / 12] and 0.9 < sum(shares) < 1
    assert list(looks(1000)) == [look for look in looks(100_000) if look < 1000]


@pytest.mark.parametrize("n", [1000, 100_000])
def test_few_samples_of_chance_one_half_are_given_up(n):
    """p = 1/2 is the worst case; the budget is 0.001, and five standard deviations are granted."""
    lost = np.zeros(SAMPLES, dtype=bool)
    for look, hits in paths(0.5, n).items():
        if look < n:
            lost |= over(lambda k, look=look: hopeless(k, look), hits)
    assert 0 < lost.mean() <= FUTILE + 5 * np.sqrt(FUTILE / SAMPLES)


def test_hopeless_samples_end_soon_and_good_ones_go_on():
    ends = np.full(SAMPLES, 100_000)
    for look, hits in reversed(paths(0.3, 100_000).items()):
        ends[over(lambda k, look=look: hopeless(k, look), hits)] = look
    assert ends.mean() < 300
    lost = [over(lambda k, look=look: hopeless(k, look), hits) for look, hits in paths(0.6, 10_000).items()]
    assert not np.any(lost)


def test_a_false_claim_is_as_rare_as_alpha():
    """A true chance just below what is `enough`: claims of it, at looks or after n draws, are all false."""
    alpha, n, p = 0.05, 20_000, 0.9
    false, stopped = np.zeros(SAMPLES, dtype=bool), np.zeros(SAMPLES, dtype=bool)
    for end, hits in paths(p, n).items():
        if end < n:
            stopped |= over(lambda k, end=end: sure(k, end, alpha) > p, hits)
        else:
            false |= lower_bound(hits, end, (1 - SHARE) * alpha) > p
    spread = np.sqrt(alpha * (1 - alpha) / SAMPLES)
    assert (false | stopped).mean() <= alpha + 3 * spread
    assert false.mean() > alpha - 4 * spread  # Cohen's bound is not loose, so the test could fail
    assert stopped.mean() <= SHARE * alpha + 5 * np.sqrt(SHARE * alpha / SAMPLES)


def test_sure_samples_end_soon():
    ends = np.full(SAMPLES, 100_000)
    for look, hits in reversed(paths(0.9999, 100_000).items()):
        ends[over(lambda k, look=look: sure(k, look, 0.001) > 0.95, hits)] = look
    assert ends.mean() < 400
