"""Random points of the ball."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.noise import noise
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, ce
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 36, 4)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.head(torch.relu(self.body(x - 0.5)).flatten(1))


def data(n, seed=0):
    torch.manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, 3, 6, 6)


def ask(net, x, ball, keep="best", seed=0, watch=None, attack=noise, **params):
    with torch.no_grad():
        y = net(x).argmax(1)
    net.seen.clear()
    oracle = Oracle(
        net, x, Criterion(y), rng=RowRandom(seed, "start", torch.arange(len(x))), keep=keep, watch=watch
    )
    with frozen(net):
        return attack(oracle, x, ball, **params), oracle, y


def test_corners_are_at_distance_eps_in_every_pixel():
    x, net = data(4), Net()
    x_adv, _, _ = ask(net, x, Ball("linf", 0.1), keep="last", kind="corners", draws=1)
    assert torch.allclose((x_adv - x).abs(), torch.tensor(0.1), atol=1e-6)
    assert 0.3 < (x_adv > x).float().mean() < 0.7


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l1", 2.0)])
def test_gaussian_noise_has_the_radius_for_expected_length(norm, eps):
    """So about half of the points lie inside and half were projected."""
    ball, x = Ball(norm, eps), data(200)
    x_adv, _, _ = ask(Net(), x, ball, keep="last", kind="gaussian", draws=1)
    length = ball.distance(x, x_adv)
    assert ball.contains(x, x_adv).all() and length.min() > 0.6 * eps
    assert 0.3 < (length < 0.9999 * eps).float().mean() < 0.7


def test_gaussian_noise_under_linf_has_deviation_eps_per_pixel():
    """32 % of a normal variable lies beyond one deviation."""
    ball, x = Ball("linf", 0.05), data(200)
    x_adv, _, _ = ask(Net(), x, ball, keep="last", kind="gaussian", draws=1)
    cut = (x_adv - x).abs() > 0.05 - 1e-6
    assert ball.contains(x, x_adv).all() and 0.30 < cut.float().mean() < 0.34


def test_every_draw_costs_one_pass_and_is_another_point():
    x, net = data(3), Net()
    ask(net, x, Ball("linf", 0.1), draws=6)
    assert len(net.seen) == 7  # the clean point included
    assert len({tuple(point[0].flatten().tolist()) for point in net.seen}) == 7


def test_a_single_draw_in_training_costs_no_pass():
    net = Net()
    x_adv, oracle, _ = ask(net, data(3), Ball("l2", 0.5), keep="last", draws=1)
    assert oracle.forward_rows == 0 and x_adv.shape == (3, 3, 6, 6)


def test_the_worst_draw_is_returned():
    x, net = data(5), Net()
    x_adv, _, y = ask(net, x, Ball("linf", 0.1), keep="last", draws=8)
    with torch.no_grad():
        losses = torch.stack([ce(net(point), y) for point in list(net.seen)])
        assert torch.allclose(ce(net(x_adv), y), losses.amax(0)) and losses.amax(0).gt(losses.amin(0)).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.4), ("l1", 2.0)])
def test_pgd_breaks_every_row_that_noise_breaks_and_more(norm, eps):
    x, ball, net = data(120), Ball(norm, eps), Net()
    noisy, _, y = ask(net, x, ball, draws=20)
    climbed, _, _ = ask(net, x, ball, attack=pgd, steps=10)
    with torch.no_grad():
        by_noise, by_pgd = net(noisy).argmax(1) != y, net(climbed).argmax(1) != y
    assert (by_pgd | ~by_noise).all() and by_pgd.sum() > by_noise.sum()


def test_broken_rows_are_asked_no_more():
    x, net = data(60), Net()
    _, oracle, _ = ask(
        net,
        x,
        Ball("linf", 0.1),
        draws=12,
        kind="corners",
        watch=lambda rows, points: torch.ones(len(rows), dtype=torch.bool),
    )
    assert 0 < oracle.alive < 60 and oracle.forward_rows < 13 * 60


@pytest.mark.parametrize(
    ("params", "norm", "word"), [({"draws": 0}, "linf", "draws"), ({"kind": "corners"}, "l2", "corners")]
)
def test_bad_parameters_are_named(params, norm, word):
    with pytest.raises(ValueError, match=word):
        ask(Net(), data(1), Ball(norm, 0.1), **params)


def test_its_schema_is_what_yaml_may_set():
    assert set(registry.parameters(noise)) == {"draws", "kind"}
