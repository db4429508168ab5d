"""A randomised model: how many passes stand behind an answer to an attack, and what that costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustcli
from robustcli.assembly.attacks import make_attacks, planned_passes
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.evaluation.draws import EOT_DRAWS, averaged, spent
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import Search


def calls(name, norm="linf", **params):
    return make_attacks([Spec(name=name, **params)], norm, search=Search())


def test_a_short_search_averages_as_the_authors_do_and_a_long_one_over_fewer_draws():
    standard = {call.label: averaged(call, 10, "linf") for call in calls("autoattack")}
    assert standard == {"apgd-ce": 20, "apgd-t": 6, "fab-t": 2, "square": 2, "apgd-wide": 20}
    assert averaged(*calls("pgd", steps=20), 10, "linf") == EOT_DRAWS


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_standard_costs_a_fifth_of_twenty_draws_everywhere(norm):
    stages = calls("autoattack", norm)
    cost = sum(spent(stages, 10, norm, randomised=True))
    assert 5 * cost <= EOT_DRAWS * planned_passes(stages, 10, norm)


def test_draws_that_somebody_asked_for_are_made():
    rand = calls("autoattack", version="rand")
    assert spent(rand, 10, "linf", randomised=True) == [20 * 203] * 2
    pgd = calls("pgd", steps=10)
    assert spent(pgd, 10, "linf", randomised=True, draws=7) == [7 * 21]
    assert spent(pgd, 10, "linf", randomised=False, draws=7) == [7 * 21]
    assert spent(pgd, 10, "linf", randomised=False) == [21]


class Coin(nn.Module):
    """Says class 1 with chance x of the first pixel, else class 0."""

    randomised = True

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        one = torch.rand(len(x), generator=self.generator) < x[:, 0, 0, 0]
        return torch.stack((~one, one), 1).float()


def test_a_candidate_that_fails_too_often_is_asked_no_more():
    x = torch.full((60, 1, 2, 2), 0.5)
    x_adv = torch.cat([torch.full((20, 1, 2, 2), chance) for chance in (0.1, 0.5, 1.0)])
    judge = Judge(Coin(), Ball("linf", 0.5), draws=25)
    hit = judge.hits(x, x_adv, Criterion(torch.zeros(60, dtype=torch.int64)))
    assert hit.tolist() == [False] * 40 + [True] * 20
    # A point that succeeds with chance p fails for the third time after 3 / (1 - p) draws.
    assert judge.forward_rows == pytest.approx(20 * (3 / 0.9 + 3 / 0.5 + 25), rel=0.15)


class Noisy(nn.Module):
    """A linear classifier of two classes behind Gaussian noise, which it does not declare."""

    def forward(self, x):
        z = (x + 0.1 * torch.randn_like(x) - 0.5).mean((1, 2, 3))
        return torch.stack((-z, z), 1)


def test_an_evaluation_spends_what_was_planned_at_most():
    torch.manual_seed(0)
    x = torch.rand(6, 1, 4, 4) * 0.2 + 0.7
    y = torch.ones(6, dtype=torch.int64)
    verdict = robustcli.evaluate(
        Noisy(), x, y, eps=0.02, attack="apgd", steps=100, restarts=5, checks=0, device="cpu"
    )
    (cost,) = spent(calls("apgd", steps=100, restarts=5), 2, "linf", randomised=True)
    (passes,) = verdict.passes_per_sample.values()
    looks = 25 + 5 * 25  # the judge's at the last point, and the first points of all restarts
    assert verdict.robust_acc == 1 and 0.9 * cost < passes <= cost + looks
    assert cost == 12 * 5 * 203
