"""Intervals against scipy, closed forms and coverage."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.proportions import Rate, clopper_pearson, paired_interval, unpaired_interval, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (1, 20), (7, 20), (430, 450), (1, 10000), (9999, 10000)]
)
def test_both_agree_with_scipy(k: int, n: int, level: float) -> None:
    from scipy.stats import binomtest

    result = binomtest(k, n)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        theirs = result.proportion_ci(level, method)
        assert ours(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_closed_forms_at_the_ends() -> None:
    """At k = 0 the upper Clopper-Pearson end is 1 - (a/2)^(1/n); the interval of n - k mirrors that of k."""
    assert clopper_pearson(0, 30) == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    assert clopper_pearson(30, 30) == pytest.approx((0.025 ** (1 / 30), 1.0))
    z2 = 1.959963984540054**2
    assert wilson(0, 30) == pytest.approx((0.0, z2 / (30 + z2)))
    assert wilson(30, 30)[1] == 1.0


@settings(max_examples=100, deadline=None)
@given(counts)
def test_order_mirror_and_inclusion(case: tuple[int, int]) -> None:
    k, n = case
    for interval in (clopper_pearson, wilson):
        low, high = interval(k, n)
        assert 0 <= low <= k / n <= high <= 1 and low < high
        assert interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.86, 0.99])
def test_exact_coverage(p: float) -> None:
    """Clopper-Pearson covers p with probability >= 95 % for every n: summed over the binomial, no sampling.

    Wilson stays near it.
    """
    n = 60
    masses = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]

    def covered(interval: object) -> float:
        ends = [interval(k, n) for k in range(n + 1)]  # type: ignore[operator]
        return sum(mass for mass, (low, high) in zip(masses, ends, strict=True) if low <= p <= high)

    assert covered(clopper_pearson) >= 0.95
    assert covered(wilson) >= 0.85
    assert covered(clopper_pearson) >= covered(wilson) - 1e-12


def test_nothing_is_known_of_no_samples() -> None:
    assert clopper_pearson(0, 0) == wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("k", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 0, 0.95), (1, 5, 0.0), (1, 5, 1.0)]
)
def test_nonsense_is_refused(k: int, n: int, level: float) -> None:
    for interval in (clopper_pearson, wilson):
        with pytest.raises(ValueError, match=r"0 <= k <= n|level"):
            interval(k, n, level)


def test_rate() -> None:
    rate = Rate(3, 4)
    assert rate.value == 0.75 and rate.exact == clopper_pearson(3, 4) and rate.display == wilson(3, 4)
    for k, n in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="a rate needs"):
            Rate(k, n)


def test_paired_interval_has_the_published_values() -> None:
    """Airway measurements of 21 children: Fagerland et al., BMC Med. Res. Methodol. 13:91, 2013, table 6."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=1e-3)


def test_paired_interval_at_the_ends() -> None:
    """Without a discordant pair the ends are -+ z^2 / (n + z^2); of nothing, nothing is known."""
    z2 = 1.959963984540054**2
    assert paired_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)
    assert paired_interval(50, 0, 50)[1] == 1.0
    for wrong in ((3, 3, 5), (-1, 0, 5), (6, 0, 5)):
        with pytest.raises(ValueError, match="0 <= k <= n"):
            paired_interval(*wrong)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_paired_interval_holds_the_difference_and_mirrors(case: tuple[int, int, int]) -> None:
    gained, lost, n = case[0], min(case[1], case[2] - case[0]), case[2]
    low, high = paired_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert paired_interval(lost, gained, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.1, 0.02), (0.3, 0.1), (0.01, 0.0)])
def test_paired_interval_covers(gain: float, loss: float) -> None:
    """Summed over all outcomes, no sampling: a score interval stays near its level."""
    n, covered = 60, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            mass = ways * gain**gained * loss**lost * (1 - gain - loss) ** (n - gained - lost)
            if mass < 1e-9:
                continue
            low, high = paired_interval(gained, lost, n)
            covered += mass * (low <= gain - loss <= high)
    assert covered > 0.93


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        ((48, 80, 56, 70), (0.0524, 0.3339)),
        ((3, 10, 9, 10), (0.1705, 0.8090)),
        ((2, 7, 6, 7), (0.0582, 0.8062)),
        ((0, 29, 5, 56), (-0.0381, 0.1926)),
        ((0, 20, 0, 10), (-0.1611, 0.2775)),
        ((0, 10, 10, 10), (0.6075, 1.0)),
    ],
)
def test_unpaired_interval_has_the_published_values(counts, published) -> None:
    """Newcombe 1998, table II, method 10; his difference is first minus second."""
    assert unpaired_interval(*counts) == pytest.approx(published, abs=1e-4)


def test_unpaired_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="both sides"):
        unpaired_interval(0, 0, 1, 2)
