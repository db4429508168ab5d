"""Constraint relaxation: where it searches, when it gives up, and what counts."""

import pytest
import torch
from torch import nn

from robustcli.attacks.relaxation import relaxation
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

EPS = 0.1


class Lead(nn.Module):
    """A linear model of 3 classes; class 0 is ahead by about `lead`. It keeps what it was asked about."""

    def __init__(self, lead):
        super().__init__()
        self.weight, self.lead = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), lead
        self.points = []

    def forward(self, x):
        self.points.append(x.detach())
        return x.flatten(1) @ self.weight + torch.tensor([self.lead, 0.0, 0.0])


def ask(net, n=2, watch=None, **params):
    x = torch.full((n, 1, 4, 4), 0.5)
    rng = RowRandom(0, "start", torch.arange(n))
    oracle = Oracle(net, x, Criterion(torch.zeros(n, dtype=torch.int64)), rng=rng, keep="best", watch=watch)
    with frozen(net):
        return relaxation(oracle, x, Ball("linf", EPS), **params), oracle, x


def test_it_asks_outside_the_ball_and_answers_inside():
    net = Lead(lead=0.0)
    net.lead = 1000.0
    x_adv, _, x = ask(net, targets=1, restarts=1)
    assert float((torch.stack(net.points[1:]) - x).abs().max()) == pytest.approx(1.5 * EPS, abs=1e-5)
    assert float((x_adv - x).abs().max()) <= EPS + 1e-6


@pytest.mark.parametrize(("give_up", "periods"), [(0.0, 0), (1e6, 5)])
def test_a_hopeless_search_ends_after_two_thirds_of_a_period(give_up, periods):
    """The margin stays at some 1000 logits: one number gives up at once, the other never."""
    _, oracle, _ = ask(Lead(lead=1000.0), targets=1, steps=6, warm=3, restarts=4, give_up=give_up)
    search = 5 * (2 * 6 + 2) if periods else 2 * 4 + 2
    assert oracle.passes == 2 * (1 + 2 * 3 + 3 + search), "clean, warm, its end thrice; no restart promises"


def test_only_promising_rows_are_begun_again():
    hopeless = ask(Lead(lead=1000.0), targets=1, warm=1, steps=3, restarts=3)[1].passes
    promising = ask(Lead(lead=1000.0), targets=1, warm=1, steps=3, restarts=3, promising=1e6)[1].passes
    search = 2 * 2 + 1
    assert promising - hopeless == 2 * 2 * search


def test_rows_that_rest_come_back():
    x = torch.rand(5, 1, 2, 2)
    rng, criterion = RowRandom(0, "start", torch.arange(5)), Criterion(torch.arange(5) % 3)
    oracle = Oracle(nn.Flatten(), x, criterion, rng=rng)
    first = oracle.rest(torch.tensor([0, 2, 3]), x)[0]
    (second,) = oracle.rest(torch.tensor([2, 1]), first)
    assert torch.equal(second, x[[3, 2]]) and oracle.y.tolist() == [0, 2] and oracle.standing == 5
    assert oracle.rng.ids.tolist() == [3, 2]
    (back,) = oracle.recall(x)
    assert torch.equal(back, x) and oracle.alive == 5 and oracle.rng.ids.tolist() == [0, 1, 2, 3, 4]
