"""ddn, pdpgd and sigma_zero on linear models, whose nearest error has a closed form."""

import math

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def linear(seed, shape, scale=1.0):
    """(two-class model, x, y, margins [B] to lose, their gradient [B, C, H, W])."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape[1:]), 2))
    x = 0.5 + scale * (torch.rand(shape) - 0.5)
    with torch.no_grad():
        logits = net(x)
    y = logits.argmax(1)
    w = (net[1].weight[1 - y] - net[1].weight[y]).detach().reshape(shape)
    return net, x, y, (logits.amax(1) - logits.amin(1)), w


def nearest(name, norm, net, x, y, **params):
    """(points, distances [B]) of one attack; every point is a success."""
    ball = Ball(norm, 1e4)
    with frozen(net):
        rng = RowRandom(0, "start", torch.arange(len(x)))
        oracle = Oracle(net, x, Criterion(y), rng=rng, keep="closest", ball=ball)
        x_adv = registry.attacks.get(name).fn(oracle, x, ball, **params)
        assert (net(x_adv).argmax(1) != y).all()
    return x_adv, ball.distance(x, x_adv).float()


@pytest.mark.parametrize(
    ("name", "norm"), [("ddn", "l2"), ("pdpgd", "l2"), ("pdpgd", "linf"), ("pdpgd", "l1")]
)
def test_the_distance_to_a_plane_is_found(name, norm):
    net, x, *_ = linear(1, (6, 1, 4, 4), scale=0.1)
    y, margin, w = near(net, x)
    _, found = nearest(name, norm, net, x, y, steps=200)
    exact = margin / torch.linalg.vector_norm(w.flatten(1), ord=DUAL[norm], dim=1)
    near_enough = {"linf": 1.06, "l2": 1.1, "l1": 1.3}[norm]  # pixels of nearly equal use share an l1 move
    assert (found >= exact * (1 - 1e-4)).all() and (found <= exact * near_enough).all(), found / exact


def near(net, x):
    """(y, margin, w) after the bias has moved the boundary to a margin of 0.12 or a little more."""
    with torch.no_grad():
        difference = net(x)[:, 0] - net(x)[:, 1]
        net[1].bias[1] += difference.amin() - 0.12
        logits = net(x)
    y = logits.argmax(1)
    w = (net[1].weight[1 - y] - net[1].weight[y]).detach().reshape(x.shape)
    return y, logits.amax(1) - logits.amin(1), w


@pytest.mark.parametrize("channels", [1, 3])
def test_sigma_zero_finds_the_fewest_pixels(channels):
    """A pixel wins sum_c |w| room at the border of the box; the most useful ones are taken until the answer
    changes. Trap: entries in place of pixels would be counted three times in colour."""
    net, x, y, margin, w = linear(2, (12, channels, 5, 5))
    room = torch.where(w > 0, 1 - x, x)
    won = (w.abs() * room).sum(1).flatten(1).sort(1, descending=True).values.cumsum(1)
    exact = 1 + (won <= margin[:, None]).sum(1)
    x_adv, found = nearest("sigma_zero", "l0", net, x, y, steps=200)
    assert (found >= exact).all() and (found <= exact + 1).all() and (found == exact).float().mean() >= 0.7
    same = (x_adv == x).all(1).flatten(1).sum(1)
    assert torch.equal(25 - same, found.long()), "what did not move is bitwise clean"


@pytest.mark.parametrize(
    ("name", "norm", "bad"),
    [
        ("ddn", "l2", {"first_norm": 0.0}),
        ("ddn", "l2", {"gamma": 1.0}),
        ("ddn", "l2", {"step_size_final": 0.0}),
        ("pdpgd", "l1", {"ratio": 0.0}),
        ("pdpgd", "l1", {"smoothing": 1.0}),
        ("pdpgd", "l1", {"floor": 2.0}),
        ("sigma_zero", "l0", {"sigma": 0.0}),
        ("sigma_zero", "l0", {"threshold": 1.5}),
    ],
)
def test_bad_parameters_are_named(name, norm, bad):
    net, x, y, _, _ = linear(0, (2, 1, 2, 2))
    with pytest.raises(ValueError, match=next(iter(bad))):
        nearest(name, norm, net, x, y, steps=1, **bad)
