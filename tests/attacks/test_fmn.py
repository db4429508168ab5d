"""FMN: exact where the answer is known, else closer than bisected PGD; quiet on rows with nothing to find."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli.attacks.fmn import _project, fmn
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, margin
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
NORMS = tuple(DUAL)


def start(net, x, y, ball, *, target=None, keep="closest", **more):
    return Oracle(
        net,
        x,
        Criterion(y, target),
        rng=RowRandom(0, "start", torch.arange(len(x))),
        keep=keep,
        ball=ball,
        **more,
    )


def linear(rows, classes, seed=0):
    """A linear model around grey images, and the labels that it gives them."""
    torch.manual_seed(seed)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)), 0.45 + 0.1 * torch.rand(rows, 1, 4, 4)
    with torch.no_grad():
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    return net.requires_grad_(False), x, net(x).argmax(1)


def to_plane(net, x, y, k, norm):
    """|z_y - z_k| / ||w_y - w_k||_q."""
    w, z = net[1].weight, net(x)
    gap = z.gather(1, y[:, None]) - z.gather(1, k[:, None])
    return (gap[:, 0] / torch.linalg.vector_norm(w[y] - w[k], ord=DUAL[norm], dim=1)).double()


def conv(rows, classes=4, seed=1):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, classes),
    )
    x = torch.rand(rows, 1, 6, 6)
    return net.requires_grad_(False), x, net(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_distance_to_a_plane_is_found_within_two_percent_from_above(norm):
    net, x, y = linear(12, 2)
    ball = Ball(norm, 0.0)
    found = fmn(start(net, x, y, ball), x, ball)
    exact, distance = to_plane(net, x, y, 1 - y, norm), ball.distance(x, found)
    assert margin(net(found), y).min() > -1e-6
    assert (distance >= exact * (1 - 1e-4)).all() and (distance <= exact * 1.02).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_search_ends_at_its_target(norm):
    """Where the nearest point of the plane between label and target is the target's alone, it is found."""
    net, x, y = linear(16, 3)
    target, ball = (y + 1) % 3, Ball(norm, 0.0)
    found = fmn(start(net, x, y, ball, target=target), x, ball)
    needed, distance = to_plane(net, x, y, target, norm), ball.distance(x, found)
    nearest = x + (1.01 * needed.float())[:, None, None, None] * ball.steepest(
        (net[1].weight[target] - net[1].weight[y]).view_as(x)
    )
    free = net(nearest).argmax(1) == target
    assert margin(net(found), target).max() < 1e-5 and free.any() and not free.all()
    assert (distance >= needed * (1 - 1e-4)).all() and (distance <= needed * 1.02)[free].all()


def test_the_final_point_counts():
    """The first step along a linear model's gradient ends on the boundary, the second behind it.

    Only `result` looks there.
    """
    net, x, y = linear(6, 2)
    ball = Ball("l2", 0.0)
    oracle = start(net, x, y, ball)
    distance, exact = ball.distance(x, fmn(oracle, x, ball, steps=2)), to_plane(net, x, y, 1 - y, "l2")
    behind = 1 + (0.05 + 0.001) / 2  # gamma half way
    assert all(
        any(math.isclose(ratio, known, rel_tol=1e-4) for known in (1.0, behind))
        for ratio in (distance / exact).tolist()
    )
    assert (distance > 1.01 * exact).any() and (oracle.forward_rows, oracle.backward_rows) == (
        24,
        12,
    )  # clean, two gradients, final


def test_a_radius_that_was_estimated_too_large_falls_to_the_first_success_at_once():
    """One pixel at 0.2, broken from 0.5 on: the slope at 0.2 promises 0.725.

    Small steps arrive long before the radius has shrunk.
    """
    ball, x = Ball("l2", 0.0), torch.full((1, 1, 1, 1), 0.2)
    model = lambda z: torch.cat((torch.ones(len(z), 1), 4 * z.flatten(1).square()), 1)  # noqa: E731
    found = fmn(
        start(model, x, torch.tensor([0]), ball), x, ball, steps=16, step_size=0.12, step_size_final=0.12
    )
    assert 0.3 <= float(ball.distance(x, found)) < 0.31


def pgd_at_many_radii(net, x, y, norm):
    """Distances [B] of PGD-15's nearest success at each of 50 radii: 750 gradients, where FMN takes 100."""
    top, ball = {"linf": 0.3, "l2": 1.2, "l1": 5.0}[norm], Ball(norm, 0.0)
    oracle = start(net, x, y, ball)
    for k in range(1, 51):
        pgd(oracle, x, Ball(norm, top * k / 50), steps=15, start="zero", loss="margin")
    return ball.distance(x, oracle.result(x))


@pytest.mark.parametrize("norm", NORMS)
def test_every_row_is_broken_and_the_median_is_not_worse_than_that_of_pgd(norm):
    """Trap: a row between two wrong classes whose eps, estimated anew at every step, never grows enough."""
    net, x, y = conv(16, seed=3)
    ball = Ball(norm, 0.0)
    found = fmn(start(net, x, y, ball), x, ball)
    assert margin(net(found), y).min() > -1e-6  # a point on the boundary may fall back by one rounding
    baseline = pgd_at_many_radii(net, x, y, norm)
    assert (baseline > 0).sum() > 12 and (ball.distance(x, found) > 0).all()
    assert ball.distance(x, found)[baseline > 0].median() <= baseline[baseline > 0].median()


@settings(max_examples=12, deadline=None)
@given(norm=st.sampled_from(NORMS), classes=st.sampled_from([2, 3, 4, 10]), seed=st.integers(0, 10**6))
def test_rows_that_are_wrong_from_the_start_stay_where_they_are(norm, classes, seed):
    net, x, y = conv(6, classes, seed)
    y[::2] = (y[::2] + 1) % classes
    ball = Ball(norm, 0.0)
    with frozen(net):
        found = fmn(start(net, x, y, ball), x, ball, steps=20)
        alone = fmn(start(net, x[1::2], y[1::2], ball), x[1::2], ball, steps=20)
        untracked = fmn(start(net, x, y, ball, keep="last"), x, ball, steps=20)
    assert torch.equal(found[::2], x[::2]) and torch.equal(untracked[::2], x[::2])
    assert torch.isfinite(untracked).all() and (found >= 0).all() and (found <= 1).all()
    assert torch.allclose(found[1::2], alone, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_model_without_gradients_or_with_broken_logits_gives_the_images_back(norm, value):
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 0, 0])
    ball = Ball(norm, 0.0)
    model = lambda z: z.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, value])  # noqa: E731
    y = y if value != math.inf else y + 2
    for keep in ("closest", "last"):
        assert torch.equal(fmn(start(model, x, y, ball, keep=keep), x, ball, steps=5), x)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_leave_once_a_point_in_the_ball_is_confirmed(norm):
    net, x, y = linear(16, 2)
    exact = to_plane(net, x, y, 1 - y, norm)
    ball = Ball(norm, float(exact.median() * 1.1))
    gone = []

    def watch(rows, candidates):
        confirmed = ball.contains(x[rows], candidates) & (net(candidates).argmax(1) != y[rows])
        gone.extend(rows[confirmed].tolist())
        return confirmed

    oracle = start(net, x, y, ball, watch=watch)
    found = fmn(oracle, x, ball)
    near = (exact <= ball.eps / 1.02).nonzero()[:, 0].tolist()
    assert 0 < len(near) < 16 and set(near) <= set(gone) and len(set(gone)) == len(gone)
    assert oracle.alive == 16 - len(gone) and oracle.backward_rows < 16 * 100 and len(found) == 16
    assert ball.contains(x, found)[gone].all()


@settings(max_examples=60, deadline=None)
@given(norm=st.sampled_from(NORMS), seed=st.integers(0, 10**6), scale=st.sampled_from([0.01, 0.3, 3.0]))
def test_the_projection_of_each_row_is_that_of_a_ball_of_its_radius(norm, seed, scale):
    torch.manual_seed(seed)
    x = 0.4 + 0.2 * torch.rand(5, 2, 3, 3)
    z, eps = x + scale * torch.randn_like(x), torch.tensor([0.0, 0.05, 0.2, 1.0, math.inf])
    wide = Ball(norm, 0.0, -100.0, 100.0)  # no box in the way: one nearest point
    rows = [
        Ball(norm, min(float(e), 1e6), -100.0, 100.0).project(x[k : k + 1], z[k : k + 1])
        for k, e in enumerate(eps)
    ]
    assert torch.allclose(_project(x, z, eps, wide), torch.cat(rows), atol=2e-5)
    boxed = _project(x, z, eps, Ball(norm, 0.0))
    assert (boxed >= 0).all() and (boxed <= 1).all() and torch.equal(boxed[0], x[0])
    assert (wide.distance(x, boxed) <= eps + 1e-5).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"step_size": 0.0},
        {"step_size_final": 0.0},
        {"gamma": 1.0},
        {"gamma": math.nan},
        {"gamma_final": 0.0},
        {"gamma_final": 0.1},
    ],
)
def test_bad_parameters_are_named(bad):
    net, x, y = linear(2, 2)
    with pytest.raises(ValueError, match=next(iter(bad))):
        fmn(start(net, x, y, Ball("l2", 0.0)), x, Ball("l2", 0.0), **bad)
