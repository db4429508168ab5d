"""The joint share of false alarms, by simulation."""

import math

import pytest
import torch

from robustcli.core.conformal import conformal, fewest, rank_of

SETS, FEWER = 2000, 500


def rates(detectors, n, fpr, draw, below, highest=None, sets=SETS):
    """The true false-positive rate of the thresholds of each of `sets` calibration sets, exactly.

    draw: (generator, n, detectors) -> scores of independent detectors. below: P(score <= threshold) of each.
    """
    generator = torch.Generator().manual_seed(0)
    found = [conformal(draw(generator, n, detectors), fpr, highest).thresholds for _ in range(sets)]
    return 1 - below(torch.stack(found).double()).prod(1)


def scales(detectors):
    return torch.logspace(-2, 2, detectors) if detectors > 1 else torch.ones(1)


def exponential(generator, n, detectors):
    """Scores with a long tail, on scales of their own."""
    return torch.empty(n, detectors).exponential_(generator=generator) * scales(detectors)


def below_exponential(thresholds):
    return 1 - (-thresholds / scales(thresholds.shape[1])).exp()


def counts(generator, n, detectors):
    """Whole numbers from 0 to 7, hence many ties."""
    return torch.randint(0, 8, (n, detectors), generator=generator).float()


def below_counts(thresholds):
    return ((thresholds.floor() + 1) / 8).clamp(0, 1)


def with_a_bound(generator, n, detectors):
    """A score with a long tail, and others that end at 2."""
    free = torch.empty(n, 1).exponential_(generator=generator).square()
    return torch.cat([free, 2 * torch.rand(n, detectors - 1, generator=generator).sqrt()], 1)


def below_with_a_bound(thresholds):
    free, others = thresholds[:, :1].clamp_min(0).sqrt(), thresholds[:, 1:]
    return torch.cat([1 - (-free).exp(), (others / 2).clamp(0, 1).square()], 1)


def error(found):
    """Three standard errors of the mean over the sets."""
    return 3 * float(found.std()) / math.sqrt(len(found))


@pytest.mark.parametrize(("detectors", "n"), [(1, 59), (3, 118)])
def test_the_mean_rate_is_the_stated_one(detectors, n):
    """Over 2,000 calibration sets: fpr - 1/(n + 1) <= mean <= fpr, but for the error of the simulation."""
    fpr = 0.05
    found = rates(detectors, n, fpr, exponential, below_exponential)
    assert fpr - 1 / (59 + 1) - error(found) <= float(found.mean()) <= fpr + error(found)


def test_a_score_that_ends_keeps_a_threshold_that_it_can_reach():
    """The long tail of another score moves all thresholds; the rate is the stated one all the same."""
    fpr, highest = 0.05, [math.inf, 2.0]
    found = rates(2, 118, fpr, with_a_bound, below_with_a_bound, highest, FEWER)
    assert fpr - 1 / (59 + 1) - error(found) <= float(found.mean()) <= fpr + error(found)
    generator = torch.Generator().manual_seed(0)
    sets = [with_a_bound(generator, 118, 2) for _ in range(50)]
    assert all(conformal(scores, fpr, highest).thresholds[1] < 2 for scores in sets)
    assert any(conformal(scores, fpr).thresholds[1] > 2 for scores in sets), "what this is about"


@pytest.mark.parametrize("detectors", [1, 3])
def test_ties_only_lower_it(detectors):
    found = rates(detectors, 60, 0.1, counts, below_counts, sets=FEWER)
    assert float(found.mean()) <= 0.1 + error(found)


def test_the_threshold_of_one_detector_is_an_order_statistic():
    scores = torch.randperm(99, generator=torch.Generator().manual_seed(1)).float()[:, None]
    found = conformal(scores, 0.05)
    assert (found.rank, found.alarms, found.n, found.spread_n) == (95, 4, 99, 99)
    assert float(found.thresholds) == 94.0
    low, high = found.interval
    assert low < 0.05 < high and high - low < 0.1


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 1 / 3, 0.5])
@pytest.mark.parametrize("detectors", [1, 2])
def test_too_few_images_are_refused_and_just_enough_are_not(fpr, detectors):
    least = fewest(fpr, detectors)
    scores = torch.randn(least, detectors, generator=torch.Generator().manual_seed(2))
    found = conformal(scores, fpr)
    assert found.rank <= found.n and found.alarms <= found.n - found.rank
    with pytest.raises(ValueError, match="too few"):
        conformal(scores[1:], fpr)


def test_the_rank_is_exact_where_floating_point_is_not():
    assert [rank_of(n, fpr) for n, fpr in ((19, 0.05), (99, 0.01), (999, 0.05), (9, 0.3))] == [19, 99, 950, 7]


def test_equal_scores_have_the_spread_one_and_nan_is_refused():
    found = conformal(torch.full((50, 2), 2.0), 0.1)
    assert found.spreads.tolist() == [1, 1] and found.alarms == 0
    with pytest.raises(ValueError, match="finite"):
        conformal(torch.full((50, 1), torch.nan), 0.1)
