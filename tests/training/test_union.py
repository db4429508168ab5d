"""Training in several balls: on which points a step descends, and that the random draw repeats itself."""

from functools import partial

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import bind_inner
from robustcli.core.random import RowRandom
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings
from robustcli.training.union import Union

BALLS = [Ball("linf", 0.1), Ball("l2", 0.6), Ball("l1", 2.0)]
IDS = torch.arange(8)
X = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = IDS % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


def minmax(net, attack=None, **more):
    entry = registry.objectives.get("madry")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    settings = StepSettings(net, entry.fn, entry.facts.inner, attack, BALLS[0], optimizer, **more)
    return MinMax(settings)


def strengths():
    attack = partial(pgd, steps=3)
    return [lambda t, ball=ball: (attack, ball) for ball in BALLS]


def in_union(net, rule, **more):
    union = Union(rule, strengths())
    return minmax(net, threats=union.threats, worst=rule == "max", **more)


def found_alone(net):
    """The points of each ball, as a step in this ball alone finds them."""
    points = []
    for strength in strengths():
        attack, ball = strength(0.5)
        step = minmax(net, attack=attack)
        threats = [(attack, ball)]
        points.append(step.found(X, Y, RowRandom(0, "start", IDS), None, threats)[0].x_adv)
    return points


@pytest.mark.parametrize("size", [None, 3])
def test_max_descends_at_the_point_with_the_largest_loss_of_each_image(size):
    """Traps: the maximum is taken over the batch and not per image; micro-batches mix their rows up."""
    net = network()
    step = in_union(net, "max", micro_batch=size)
    (found,) = step.found(X, Y, RowRandom(0, "start", IDS), None, step.settings.threats_of(0.5, 0, 0))
    points = found_alone(net)
    loss = bind_inner("ce", Y)
    with torch.no_grad():
        losses = torch.stack([loss(net.eval()(point)) for point in points])
    best = losses.argmax(0)
    assert len(best.unique()) > 1, "one ball is the worst for all: the case tests nothing"
    wanted = torch.stack([points[k][i] for i, k in enumerate(best.tolist())])
    assert torch.allclose(found.x_adv, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [None, 3])
def test_average_is_the_mean_of_the_losses_over_the_balls(size):
    net = network()
    loss = torch.nn.functional.cross_entropy
    points = found_alone(net)
    step = in_union(net, "average", micro_batch=size)
    terms = step(X, Y, IDS, seed=0, epoch=0)
    parts = [slice(0, 8)] if size is None else [slice(0, 3), slice(3, 6), slice(6, 8)]
    fresh = network().train()
    with torch.no_grad():
        sums = [loss(fresh(point[rows]), Y[rows], reduction="sum") for point in points for rows in parts]
    assert float(terms.total) == pytest.approx(float(torch.stack(sums).sum()) / 24, abs=1e-5)
    assert int(net[1].num_batches_tracked) == 3 * len(parts)


def test_random_draws_a_ball_from_seed_and_step_alone():
    """All ranks and a resumed run draw the same ball; over many steps each ball has its share."""
    union = Union("random", strengths())
    drawn = [union.threats(0.5, 0, step)[0][1].norm for step in range(300)]
    assert drawn == [union.threats(0.1, 0, step)[0][1].norm for step in range(300)]
    assert drawn != [union.threats(0.5, 1, step)[0][1].norm for step in range(300)]
    counts = [drawn.count(ball.norm) for ball in BALLS]
    assert sum(counts) == 300 and min(counts) > 70


@pytest.mark.parametrize("rule", ["max", "average", "random"])
def test_a_step_in_one_ball_of_a_union_is_the_step_in_that_ball(rule):
    """A union of one ball, and the ball that is drawn, train exactly as that ball without a union."""
    alone, together = network(), network()
    attack, ball = strengths()[0](0.5)
    minmax(alone, attack=attack)(X, Y, IDS, seed=0, epoch=0)
    union = Union(rule, strengths()[:1])
    minmax(together, threats=union.threats, worst=rule == "max")(X, Y, IDS, seed=0, epoch=0, number=5)
    assert ball.norm == "linf"
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name]), name
