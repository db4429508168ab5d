"""The rules of a window: exact laws, few false alarms, and attacks that are found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.guard.rules import ACT, WATCH, Reference, alarm_p, benjamini_hochberg, judge
from robustcli.guard.store.rows import Observation

UNTIMED = settings(deadline=None, max_examples=50)  # the first call imports scipy.stats
P = st.lists(st.floats(0, 1), min_size=1, max_size=30)


# ---- Benjamini and Hochberg --------------------------------------------------------------------------------


@UNTIMED
@given(P)
def test_bh_is_its_formula(p):
    order = sorted(p)
    expected = {
        value: min(1.0, min(order[j] * len(p) / (j + 1) for j in range(order.index(value), len(p))))
        for value in p
    }
    assert benjamini_hochberg(p) == pytest.approx([expected[value] for value in p])


@UNTIMED
@given(P, st.floats(0.001, 0.5))
def test_bh_rejects_the_largest_k_that_its_line_allows(p, q):
    order = sorted(p)
    under = [k + 1 for k, value in enumerate(order) if value <= q * (k + 1) / len(p) * (1 - 1e-12)]
    assert sum(value <= q for value in benjamini_hochberg(p)) >= max(under, default=0)
    over = [k + 1 for k, value in enumerate(order) if value <= q * (k + 1) / len(p) * (1 + 1e-12)]
    assert sum(value <= q for value in benjamini_hochberg(p)) <= max(over, default=0)


@UNTIMED
@given(P)
def test_bh_keeps_the_order_and_never_lowers(p):
    adjusted = benjamini_hochberg(p)
    assert all(0 <= a <= 1 and a >= value * (1 - 1e-12) for a, value in zip(adjusted, p, strict=True))
    pairs = sorted(zip(p, adjusted, strict=True))
    assert all(a <= b + 1e-12 for (_, a), (_, b) in zip(pairs, pairs[1:], strict=False))


# ---- the rate of alarms ------------------------------------------------------------------------------------


def beta_binomial(n, a, b):
    """Its law, from the recursion of its definition: Polya's urn, ball after ball."""
    law = [1.0]
    for drawn in range(n):
        after = [0.0] * (drawn + 2)
        for k, p in enumerate(law):
            after[k + 1] += p * (a + k) / (a + b + drawn)
            after[k] += p * (b + drawn - k) / (a + b + drawn)
        law = after
    return law


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_alarms_have_an_exact_law(n, m, data):
    k, rank = data.draw(st.integers(0, n)), data.draw(st.integers(1, m))
    above = data.draw(st.integers(0, m - rank))
    more, fewer = alarm_p(k, n, Reference(m, rank, above, {}))
    assert more == pytest.approx(sum(beta_binomial(n, m + 1 - rank, rank)[k:]), abs=1e-9)
    least = [1.0]
    if above:
        least = beta_binomial(n, above, m + 1 - above)
    assert fewer == pytest.approx(sum(least[: k + 1]), abs=1e-9)


def test_few_calibration_images_ask_for_more_alarms():
    """30 of 300, where 15 were expected: surprising for thresholds from many images, not from 59."""
    many, few = Reference(9999, 9500, 499, {}), Reference(59, 57, 2, {})
    assert many.rate == few.rate == 0.05
    assert alarm_p(30, 300, many)[0] < 0.001 < 0.05 < alarm_p(30, 300, few)[0]


def test_scores_that_are_all_the_same_make_no_false_alarm_of_silence():
    """A detector with few values rejects fewer clean images than it may."""
    found = judge([Observation(0.0, True, {"0": 1.0}, "m")] * 400, Reference(500, 476, 0, {"0": [1.0] * 500}))
    assert found.state == "ok"


# ---- windows -----------------------------------------------------------------------------------------------


def fitted(rng, m, detectors=3, fpr=0.05):
    """A guard on m clean images: thresholds that all detectors share, and what it was fitted on."""
    scores = rng.standard_normal((m, detectors))
    rank = math.ceil((m + 1) * (1 - fpr))
    threshold = np.sort(scores.max(1))[rank - 1]
    columns = {str(d): scores[:, d].tolist() for d in range(detectors)}
    return threshold, Reference(m, rank, m - rank, columns)


def window(scores, threshold):
    return [
        Observation(0.0, bool(row.max() <= threshold), {str(d): float(s) for d, s in enumerate(row)}, "m")
        for row in scores
    ]


def false_alarms(times, seed):
    """How often clean images alone make the rules say each state."""
    rng, states = np.random.default_rng(seed), {"ok": 0, "watch": 0, "act": 0}
    for _ in range(times):
        m, n = int(rng.integers(40, 400)), int(rng.integers(5, 500))
        threshold, reference = fitted(rng, m)
        states[judge(window(rng.standard_normal((n, 3)), threshold), reference).state] += 1
    return states


def at_most(times, level):
    """A count of false alarms that luck alone exceeds once in 10,000 runs."""
    from scipy.stats import binom

    return int(binom.ppf(1 - 1e-4, times, level))


def test_clean_images_rarely_raise_an_alarm():
    states = false_alarms(80, 1)
    assert states["act"] <= at_most(80, ACT) and states["watch"] <= at_most(80, WATCH)


@pytest.mark.slow
def test_clean_images_rarely_raise_an_alarm_in_ten_thousand_windows():
    states = false_alarms(10_000, 2)
    assert states["act"] <= at_most(10_000, ACT) and states["watch"] <= at_most(10_000, WATCH)


def judged(change, n=400, m=500):
    rng = np.random.default_rng(3)
    threshold, reference = fitted(rng, m)
    scores = rng.standard_normal((n, 3))
    change(scores)
    return judge(window(scores, threshold), reference)


def test_a_tenth_of_attacks_is_something_to_act_on():
    def attack(scores):
        scores[:40, 1] += 4

    found = judged(attack)
    assert found.state == "act" and found.alarms > 50
    assert "images raised an alarm" in found.reasons[0] and "5.0% were expected" in found.reasons[0]
    rates = found.to_json()
    assert rates["alarm_rate"] == found.alarms / 400 and rates["interval"][0] > 0.08


def test_scores_that_move_without_an_alarm_are_found():
    """What an attacker does who knows the threshold."""

    def adaptive(scores):
        scores[:, 2] = np.minimum(scores[:, 2], -0.5)

    found = judged(adaptive)
    assert found.state == "act" and [each.rule for each in found.findings if each.state == "act"] == ["2"]
    assert "scores of 2 are lower than on clean images" in " ".join(found.reasons)


def test_a_difference_that_is_certain_but_small_is_to_be_watched():
    def slightly(scores):
        scores[:, 0] += 0.15

    found = judged(slightly, n=8_000, m=8_000)
    assert found.state == "watch" and found.findings[1].adjusted < ACT and not found.findings[1].large


def test_silence_is_to_be_watched():
    _, reference = fitted(np.random.default_rng(0), 100, detectors=1)
    assert judge([], reference).state == "watch" and judge([], reference).to_json()["alarm_rate"] is None
    quiet = [Observation(0.0, True, {"0": None if k % 2 else 0.1 * k}, "m") for k in range(10)]
    found = judge(quiet, reference)
    assert found.state == "watch" and "0 gave no finite score for 5 of 10 images" in found.reasons


@pytest.mark.parametrize(
    ("n", "rank", "alarms"), [(0, 0, 0), (10, 11, 0), (10, 9, 2), (10, 0, 0), (10, 9, -1)]
)
def test_thresholds_that_cannot_be_are_refused(n, rank, alarms):
    with pytest.raises(ValueError, match="no thresholds"):
        Reference(n, rank, alarms, {})
