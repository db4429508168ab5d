"""Bounds of a chance, against exact sums of rational numbers; no library computes both sides."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.certificates.binomial import lower_bound, tie_chance, upper_bound


def at_least(k: int, n: int, p: Fraction) -> Fraction:
    """P(X >= k), X ~ Binomial(n, p): the sum of its terms, in integers over one denominator."""
    a, b = p.numerator, p.denominator
    return Fraction(sum(comb(n, i) * a**i * (b - a) ** (n - i) for i in range(k, n + 1)), b**n)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
    st.sampled_from((0.3, 0.05, 0.001, 1e-6)),
)
def test_the_bound_is_below_and_touches_alpha(draws, alpha):
    k, n = draws
    p = Fraction(float(lower_bound(k, n, alpha)))
    assert at_least(k, n, p) <= Fraction(alpha)
    assert at_least(k, n, p + Fraction(3, 10**13)) > Fraction(alpha)  # what is rounded down is 1e-13


@pytest.mark.parametrize(("k", "n"), [(100, 100), (99, 100), (620, 1000)])
def test_of_many_draws(k, n):
    p = Fraction(float(lower_bound(k, n, 0.001))).limit_denominator(10**6)
    near = Fraction(1, 10**5)
    assert at_least(k, n, p - near) < Fraction(1, 1000) < at_least(k, n, p + near)


def test_of_twenty_thousand_hits():
    """p^n = alpha, by powers of integers: what stands behind the largest radius of a table."""
    scale = 10**8
    a = int(float(lower_bound(20_000, 20_000, 0.001)) * scale)
    assert 1000 * a**20_000 <= scale**20_000 < 1000 * (a + 1) ** 20_000


def test_ends_and_order():
    assert lower_bound(0, 10, 0.05) == 0 and upper_bound(10, 10, 0.05) == 1
    k = np.arange(101)
    assert (np.diff(lower_bound(k, 100, 0.001)) > 0).all()
    assert (lower_bound(k, 100, 0.001) <= lower_bound(k, 100, 0.01)).all()
    assert (lower_bound(k, 100, 0.001) <= lower_bound(10 * k, 1000, 0.001)).all()
    assert (lower_bound(k, 100, 0.001) < upper_bound(k, 100, 0.001)).all()


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (30, 12), (12, 30), (50, 50)])
def test_a_tie_is_the_two_sided_sum(first, second):
    n, most = first + second, max(first, second)
    exact = min(Fraction(1), 2 * at_least(most, n, Fraction(1, 2)))
    assert tie_chance(first, second) == pytest.approx(float(exact), rel=1e-12)
