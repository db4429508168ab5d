"""The l0 ball: pixels are positions, they are counted without a tolerance, and the projection is exact."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 4))


def images(shape, seed, low=0.0, high=1.0):
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * uniform).float()


def brute_force(x, z, count):
    """The least ||p - z||_2^2 over all p that differ from x in at most `count` pixels, in float64: [B]."""
    x, z = x.double().flatten(2), z.double().flatten(2)
    boxed, pixels, best = z.clamp(0, 1), x.shape[2], None
    for taken in itertools.combinations(range(pixels), min(count, pixels)):
        p = x.clone()
        p[:, :, list(taken)] = boxed[:, :, list(taken)]
        cost = (p - z).square().flatten(1).sum(1)
        best = cost if best is None else torch.minimum(best, cost)
    return best


@settings(max_examples=150, deadline=None)
@given(
    shape=SHAPES, count=st.integers(0, 5), seed=st.integers(0, 10**6), size=st.sampled_from([0.1, 1.0, 30.0])
)
def test_the_projection_is_the_nearest_point_of_ball_and_box(shape, count, seed, size):
    x = images(shape, seed)
    z = x + size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    ball = Ball("l0", float(count))
    p = ball.project(x, z)
    assert ball.contains(x, p).all()
    cost = (p.double() - z.double()).square().flatten(1).sum(1)
    assert torch.allclose(cost, brute_force(x, z, count), rtol=1e-6, atol=1e-9)


def test_the_projection_does_not_keep_the_largest_change_after_the_clip():
    """Trap: pixel 0 moves only 0.1 in the box, yet without it the point is 4.1 away in place of 4."""
    x, z = torch.tensor([[[[0.9, 0.5]]]]), torch.tensor([[[[5.0, 0.8]]]])
    assert Ball("l0", 1.0).project(x, z).flatten().tolist() == [1.0, 0.5]


def test_a_pixel_is_a_position_and_all_of_its_channels_count_once():
    x = torch.zeros(3, 3, 2, 2)
    z = x.clone()
    z[0, :, 0, 0] = 0.5
    z[1, 0, 0, 0] = z[1, 1, 1, 1] = 0.5
    distance = Ball("l0", 1.0).distance(x, z)
    assert distance.tolist() == [1.0, 2.0, 0.0] and distance.dtype == torch.float64
    assert Ball("l0", 1.0).contains(x, z).tolist() == [True, False, True]


def test_the_smallest_change_counts_as_a_whole_pixel():
    """Trap: a tolerance would let an attack move every pixel by rounding."""
    x = torch.full((1, 1, 2, 2), 0.5)
    z = torch.nextafter(x, torch.ones_like(x))
    assert Ball("l0", 3.0).distance(x, z).tolist() == [4.0] and not Ball("l0", 3.0).contains(x, z).any()


def test_a_point_outside_the_box_is_no_point_of_the_ball():
    x = torch.zeros(2, 1, 1, 2)
    z = x.clone()
    z[0, 0, 0, 0], z[1, 0, 0, 0] = 1.001, float("nan")
    assert not Ball("l0", 2.0).contains(x, z).any()


def test_random_points_change_each_pixel_equally_often_to_any_value():
    x = torch.full((3000, 2, 1, 5), 0.5)
    ball = Ball("l0", 2.0)
    z = ball.random_point(x, RowRandom(0, "start", torch.arange(3000)))
    assert (ball.distance(x, z) == 2).all() and ball.contains(x, z).all()
    moved = (z != x).all(1)
    assert torch.allclose(moved.float().mean((0, 1)), torch.full((5,), 0.4), atol=0.04)
    values = z.movedim(1, -1)[moved]
    assert torch.allclose(values.mean(0), torch.full((2,), 0.5), atol=0.02)
    assert float(values.min()) < 0.01 and float(values.max()) > 0.99


def test_more_pixels_than_there_are_change_all():
    x = images((2, 1, 2, 2), 0)
    ball = Ball("l0", 9.0)
    assert torch.equal(ball.project(x, 1 - x), 1 - x)
    assert (ball.distance(x, ball.random_point(x, RowRandom(0, "start", torch.arange(2)))) == 4).all()


def test_a_scaled_ball_drops_fractions_of_a_pixel():
    assert Ball("l0", 5.0).scaled(0.5).eps == 2 and Ball("l2", 5.0).scaled(0.5).eps == 2.5


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e20])
def test_a_step_goes_along_the_gradient_and_ends_in_the_ball(scale):
    """The pixels of the largest |g| * room win, wherever the box ends: here the third and the first."""
    x = torch.tensor([[[[0.5, 0.99, 0.0, 0.5]]]])
    grad = torch.tensor([[[[-2.0, 9.0, 3.0, 0.5]]]]) * scale
    ball = Ball("l0", 2.0)
    v = ball.steepest(grad, x)
    assert torch.allclose(v.flatten(), torch.tensor([-2 / 9, 1.0, 1 / 3, 0.5 / 9]))
    assert ball.project(x, x + ball.reach * v).flatten().tolist() == pytest.approx([0.0, 0.99, 1.0, 0.5])
