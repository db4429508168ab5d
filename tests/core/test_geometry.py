"""The ball: projections by definition, random points, steepest directions, traps of float arithmetic."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustcli.core.geometry import NORMS, Ball
from robustcli.core.random import RowRandom

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
radii = {
    "linf": st.sampled_from([0.0, 1 / 255, 8 / 255, 0.3, 1.0]),
    "l2": st.sampled_from([0.0, 0.01, 0.5, 3.0]),
    "l1": st.sampled_from([0.0, 0.1, 2.0, 12.0]),
    "l0": st.sampled_from([0.0, 1.0, 3.0, 40.0]),
}


def images(shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=shapes, seed=st.integers(0, 10**6), size=st.sampled_from([1e-6, 0.1, 1.0, 50.0]))
def test_projection_lies_in_the_ball_and_box_and_is_idempotent(norm, data, shape, seed, size):
    ball = Ball(norm, data.draw(radii[norm]))
    x, z = (
        images(shape, seed),
        images(shape, seed) + size * torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)),
    )
    x_copy = x.clone()
    p = ball.project(x, z)
    assert ball.contains(x, p).all() and torch.equal(x, x_copy)
    assert torch.allclose(ball.project(x, p), p, atol=3e-6)
    if ball.eps == 0:
        assert torch.equal(p, x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_already_inside_stays(norm):
    x = torch.full((2, 1, 3, 3), 0.5)
    z = x + 1e-4
    eps = 9.0 if norm == "l0" else 0.5
    assert torch.allclose(Ball(norm, eps).project(x, z), z, atol=1e-7)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.05, 0.4, 1.5]))
def test_l1_projection_is_the_nearest_point_of_ball_and_box(seed, eps):
    rng = np.random.default_rng(seed)
    x, z = rng.random(5), rng.random(5) * 3 - 1
    ours = (
        Ball("l1", eps)
        .project(torch.tensor(x).float().view(1, 1, 1, 5), torch.tensor(z).float().view(1, 1, 1, 5))
        .double()
        .flatten()
        .numpy()
    )
    # u = x + a - b with a, b >= 0 makes the problem smooth.
    solved = minimize(
        lambda v: ((x + v[:5] - v[5:] - z) ** 2).sum(),
        np.zeros(10),
        bounds=[(0, 1 - a) for a in x] + [(0, a) for a in x],
        constraints=[{"type": "ineq", "fun": lambda v: eps - v.sum()}],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assume(solved.success)  # SLSQP gives up on some starts
    assert ((ours - z) ** 2).sum() <= solved.fun + 1e-5


def test_l1_projection_is_no_clamp_of_coordinates():
    """Trap: clamping each coordinate to eps (a peer does) leaves an l1 length of d * eps."""
    x = torch.full((1, 1, 1, 4), 0.5)
    p = Ball("l1", 0.4).project(x, x + torch.tensor([0.4, 0.4, 0.4, 0.4]))
    assert torch.allclose(p - x, torch.full((1, 1, 1, 4), 0.1), atol=1e-6)


def test_l2_projection_scales_each_row_by_its_own_length():
    """Trap: a squared norm that returns one number for a whole batch."""
    x = torch.full((2, 1, 2, 2), 0.5)
    z = x.clone()
    z[0] += 0.01
    z[1] += 0.4
    ball = Ball("l2", 0.1)
    p = ball.project(x, z)
    assert torch.allclose(p[0], z[0]) and ball.distance(x, p)[1] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_points_fill_the_ball(norm):
    eps = {"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm]
    x = torch.full((4000, 1, 1, 3), 0.5)
    ball = Ball(norm, eps)
    points = ball.random_point(x, RowRandom(0, "start", torch.arange(4000)))
    assert ball.contains(x, points).all()
    share = (ball.distance(x, points) / eps).float()
    # In d = 3 dimensions P(distance <= r eps) = r^3 for a uniform point.
    for r in (0.5, 0.8, 0.95):
        assert float((share <= r).float().mean()) == pytest.approx(r**3, abs=0.03)
    assert torch.allclose((points - x).mean(0), torch.zeros(1, 1, 3), atol=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10**6), scale=st.sampled_from([1e-30, 1e-8, 1.0, 1e20]))
def test_steepest_has_unit_length_and_is_steepest(norm, shape, seed, scale):
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    assume(bool((grad.flatten(1).abs().amax(1) > 0).all()))
    v = Ball(norm, 1.0).steepest(grad)  # at most 75 pixels: l1 moves one
    flat_v, flat_g = v.flatten(1).double(), grad.flatten(1).double()
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    assert torch.allclose(
        torch.linalg.vector_norm(flat_v, ord=order, dim=1), torch.ones(len(v), dtype=torch.float64), atol=1e-5
    )
    best = torch.linalg.vector_norm(flat_g, ord=DUAL[norm], dim=1)
    assert torch.allclose((flat_v * flat_g).sum(1), best, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_of_zero_is_zero(norm):
    assert torch.equal(Ball(norm, 1.0).steepest(torch.zeros(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))


def test_l1_steepest_spreads_over_a_share_of_the_coordinates():
    v = Ball("l1", 1.0).steepest(torch.arange(1.0, 501).view(1, 1, 20, 25))
    assert (
        int((v != 0).sum()) == 5
        and float(v.sum()) == pytest.approx(1)
        and float(v.flatten()[-1]) == pytest.approx(0.2)
    )


def test_contains_refuses_nan_the_box_and_one_level_too_many():
    x = torch.full((4, 1, 2, 2), 0.99)
    z = x.clone()
    z[0, 0, 0, 0] = float("nan")
    z[1, 0, 0, 0] = 1.001
    z[2, 0, 0, 0] = x[2, 0, 0, 0] - 9 / 255
    assert Ball("linf", 8 / 255).contains(x, z).tolist() == [False, False, False, True]


def test_distance_is_float64_per_row():
    x, z = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.3, -0.4]]], [[[0.0, 1.0]]]])
    for norm, expected in {"linf": [0.4, 1], "l2": [0.5, 1], "l1": [0.7, 1], "l0": [2, 1]}.items():
        d = Ball(norm, 1).distance(x, z)
        assert d.dtype == torch.float64 and d.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "zero"])
@pytest.mark.parametrize("norm", NORMS)
def test_starts_lie_in_the_ball(kind, norm):
    x, ball = images((3, 1, 4, 4), 0), Ball(norm, 3.0 if norm == "l0" else 0.2)
    start = ball.start(x, kind, RowRandom(0, "start", torch.arange(3)), scale=0.5)
    assert ball.contains(x, start).all() and torch.equal(start, x) == (kind == "zero")


def test_wide_start_without_clip_is_that_of_nfgsm():
    x = torch.full((50, 1, 4, 4), 0.5)
    noise = (
        Ball("linf", 0.1).start(x, "uniform", RowRandom(0, "start", torch.arange(50)), scale=2.0, clip=False)
        - x
    )
    assert 0.19 < float(noise.abs().max()) <= 0.2 + 1e-6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ball("l3", 1.0), "unknown norm"),
        (lambda: Ball("l0", 1.5), "whole number of pixels"),
        (lambda: Ball("linf", -0.1), "eps"),
        (lambda: Ball("linf", math.nan), "eps"),
        (lambda: Ball("linf", 0.1, 1.0, 0.0), "box"),
        (lambda: Ball("linf", 0.1).check_step(0, None), "steps"),
        (lambda: Ball("linf", 0.1).check_step(3, 0.0), "step_size"),
        (
            lambda: Ball("linf", 0.1).start(
                torch.zeros(1, 1, 1, 1), "far", RowRandom(0, "s", torch.arange(1))
            ),
            "start",
        ),
    ],
)
def test_bad_values_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_default_step_covers_the_ball_two_and_a_half_times():
    assert Ball("linf", 0.1).check_step(10, None) == pytest.approx(0.025)
    assert Ball("linf", 0.1).check_step(10, 0.5) == 0.5
