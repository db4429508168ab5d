"""Carlini and Wagner: the distance to a plane, a c for each row, and no NaN at the ends of the box."""

import math

import pytest
import torch
from torch import nn

from robustcli.attacks.cw import cw
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, margin
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

BALL = Ball("l2", 0.0)


def start(net, x, y, *, target=None, keep="closest", ball=BALL, **more):
    return Oracle(
        net,
        x,
        Criterion(y, target),
        rng=RowRandom(0, "start", torch.arange(len(x))),
        keep=keep,
        ball=ball,
        **more,
    )


def linear(rows, classes=2, seed=0):
    """A linear model whose first class leads by 0.1 to 0.3 of l2 distance at grey images; their labels."""
    torch.manual_seed(seed)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)), 0.4 + 0.2 * torch.rand(rows, 1, 4, 4)
    with torch.no_grad():
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
        net[1].bias[0] += 0.2
    return net.requires_grad_(False), x, net(x).argmax(1)


def to_plane(net, x, y, k):
    w, z = net[1].weight, net(x)
    return (
        (z.gather(1, y[:, None]) - z.gather(1, k[:, None]))[:, 0]
        / torch.linalg.vector_norm(w[y] - w[k], dim=1)
    ).double()


def test_the_distance_to_a_plane_is_found_within_two_percent_from_above():
    net, x, y = linear(8)
    found = cw(start(net, x, y), x, BALL, steps=200, binary_search=9, step_size=0.01)
    exact, distance = to_plane(net, x, y, 1 - y), BALL.distance(x, found)
    assert (net(found).argmax(1) != y).all()
    assert (distance >= exact * (1 - 1e-4)).all() and (distance <= exact * 1.02).all()


def test_each_row_finds_its_own_c():
    """Logits a thousand times smaller need a c a thousand times larger, in this half of the batch only."""
    net, x, y = linear(8)
    scale = torch.where(torch.arange(8) < 4, 1.0, 1e-3)[:, None]
    x = torch.cat((x[:4], x[:4]))
    y = torch.cat((y[:4], y[:4]))
    few = start(lambda z: net(z) * scale[: len(z)], x, y)
    kept = BALL.distance(x, cw(few, x, BALL, binary_search=9, initial_c=0.01))
    exact = to_plane(net, x, y, 1 - y)
    assert ((kept > 0) & (kept < 1.1 * exact)).all()
    few = start(lambda z: net(z) * scale[: len(z)], x, y)
    once = BALL.distance(x, cw(few, x, BALL, binary_search=1, initial_c=10.0))
    assert (once[:4] > 0).all() and (once[4:] == 0).all()  # a c for all would not do


def test_a_targeted_search_ends_at_its_target():
    net, x, y = linear(8, 4)
    target = (y + 1) % 4
    found = cw(start(net, x, y, target=target), x, BALL)
    assert (net(found).argmax(1) == target).all() and (
        BALL.distance(x, found) >= to_plane(net, x, y, target) * (1 - 1e-4)
    ).all()


def test_confidence_moves_the_search_beyond_the_boundary():
    net, x, y = linear(8)
    margins = [
        margin(
            net(cw(start(net, x, y, keep="last"), x, BALL, binary_search=1, initial_c=100.0, confidence=k)), y
        )
        for k in (0.0, 0.2)
    ]
    assert margins[0].abs().max() < 0.1 and (margins[1] - 0.2).abs().max() < 0.1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_black_and_white_pixels_and_rows_that_are_wrong_from_the_start(classes):
    torch.manual_seed(1)
    net, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).requires_grad_(False),
        (torch.rand(6, 1, 4, 4) > 0.5).float(),
    )
    y = net(x).argmax(1)
    y[::2] = (y[::2] + 1) % classes
    found, last = (cw(start(net, x, y, keep=keep), x, BALL, steps=100) for keep in ("closest", "last"))
    assert (
        torch.equal(found[::2], x[::2]) and torch.isfinite(last).all() and ((last >= 0) & (last <= 1)).all()
    )
    assert (net(found).argmax(1) != y).all() and (BALL.distance(x, found)[1::2] > 0).all()


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_model_without_gradients_or_with_broken_logits_gives_the_images_back(value):
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 0, 0])
    model = lambda z: z.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, value])  # noqa: E731
    assert torch.equal(cw(start(model, x, y), x, BALL, steps=5), x)
    assert torch.allclose(cw(start(model, x, y, keep="last"), x, BALL, steps=5), x, atol=1e-5)


def test_rows_leave_once_a_point_in_the_ball_is_confirmed():
    net, x, y = linear(16)
    exact = to_plane(net, x, y, 1 - y)
    ball, gone = Ball("l2", float(exact.median() * 1.1)), []

    def watch(rows, candidates):
        confirmed = ball.contains(x[rows], candidates) & (net(candidates).argmax(1) != y[rows])
        gone.extend(rows[confirmed].tolist())
        return confirmed

    oracle = start(net, x, y, ball=ball, watch=watch)
    found = cw(oracle, x, ball, step_size=0.01)
    near = (exact < ball.eps / 1.02).nonzero()[:, 0].tolist()
    assert 0 < len(near) < 16 and set(near) <= set(gone) and len(set(gone)) == len(gone)
    assert oracle.alive == 16 - len(gone) and oracle.backward_rows < 16 * 501 and len(found) == 16
    assert ball.contains(x, found)[gone].all()


def test_the_passes_are_those_that_the_docstring_says():
    net, x, y = linear(4)
    oracle = start(net, x, y, keep="last")
    cw(oracle, x, BALL, steps=7, binary_search=3)
    assert (oracle.forward_rows, oracle.backward_rows) == (4 * 22, 4 * 22)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"binary_search": 0},
        {"step_size": 0.0},
        {"initial_c": 0.0},
        {"initial_c": math.nan},
        {"confidence": -1.0},
    ],
)
def test_bad_parameters_are_named(bad):
    net, x, y = linear(2)
    with pytest.raises(ValueError, match=next(iter(bad))):
        cw(start(net, x, y), x, BALL, **bad)
