"""The shortest way to a plane inside the box, against linear programs and a bisection on optimality."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from robustcli.core.geometry import Ball
from robustcli.core.hyperplane import dot, dual_length, length, to_plane

NORMS = ("linf", "l2", "l1")
# Ties, zeros and pixels on the border of the box are the cases that sorting and saturation get wrong.
weights = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.integers(-300, 300).map(lambda k: k / 100))
pixels = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 255).map(lambda k: k / 255))


@st.composite
def problems(draw, rows=4):
    n = draw(st.integers(1, 7))
    x = [[draw(pixels) for _ in range(n)] for _ in range(rows)]
    w = [[draw(weights) for _ in range(n)] for _ in range(rows)]
    share = [
        draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.5, -0.1, -0.5, -0.9, -1.5])) for _ in range(rows)
    ]
    x, w, share = (
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(w, dtype=torch.float32),
        torch.tensor(share),
    )
    return x, w, share * torch.where(share > 0, capacity(x, w, 1.0), capacity(x, w, -1.0))


def capacity(x, w, sign):
    """How far the box allows <w, x + d> to fall (sign 1) or to rise (sign -1)."""
    w = sign * w
    return torch.where(w > 0, w * x, -w * (1 - x)).sum(1)


def shortest(x, w, value, norm):
    """Length of the shortest d by a linear program (linf, l1) or by a root search for its multiplier (l2)."""
    n, x, w, value = len(x), x.double().numpy(), w.double().numpy(), float(value)
    low, high = -x, 1 - x
    if norm == "l2":
        gap = lambda t: value + (w * np.clip(-t * w, low, high)).sum()  # noqa: E731
        if value == 0:
            return 0.0
        t = brentq(gap, 0, math.copysign(1e4, value), xtol=1e-15, maxiter=1000)
        return float(np.linalg.norm(np.clip(-t * w, low, high)))
    eye = np.eye(n)
    if norm == "linf":  # (d, t): minimise t with |d| <= t
        cost, bounds = np.r_[np.zeros(n), 1.0], [*zip(low, high, strict=True), (0, None)]
        limits, equal = np.block([[eye, -np.ones((n, 1))], [-eye, -np.ones((n, 1))]]), np.r_[w, 0.0]
    else:  # (d, u): minimise sum u with |d| <= u
        cost, bounds = np.r_[np.zeros(n), np.ones(n)], [*zip(low, high, strict=True), *[(0, None)] * n]
        limits, equal = np.block([[eye, -eye], [-eye, -eye]]), np.r_[w, np.zeros(n)]
    solved = linprog(cost, A_ub=limits, b_ub=np.zeros(2 * n), A_eq=equal[None], b_eq=[-value], bounds=bounds)
    return float(solved.fun) if solved.status == 0 else None


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=25, deadline=None)
@given(problem=problems(rows=3))
def test_no_shorter_way_exists(norm, problem):
    x, w, value = problem
    ours = length(to_plane(x, w, value, Ball(norm, 1.0)), norm)
    reachable = value.abs() <= 0.9995 * torch.where(value > 0, capacity(x, w, 1.0), capacity(x, w, -1.0))
    for row in reachable.nonzero()[:, 0]:
        expected = shortest(x[row], w[row], value[row], norm)
        assert expected is not None and float(ours[row]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=50, deadline=None)
@given(problem=problems(), scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e20]))
def test_the_end_is_in_the_box_and_on_the_plane_or_in_the_corner_nearest_to_it(norm, problem, scale):
    x, w, value = problem
    copies = x.clone(), w.clone(), value.clone()
    d = to_plane(x, w * scale, value * scale, Ball(norm, 1.0))
    assert all(torch.equal(a, b) for a, b in zip((x, w, value), copies, strict=True))
    assert torch.isfinite(d).all() and (x + d >= 0).all() and (x + d <= 1 + 1e-6).all()
    able = torch.where(value > 0, capacity(x, w, 1.0), capacity(x, w, -1.0))
    left = (value + dot(w, d)) * value.sign()
    assert torch.allclose(left, (value.abs() - able).clamp_min(0), atol=2e-5)
    assert (d * w * value[:, None] <= 0).all() and not d[(w == 0) | (value == 0)[:, None]].any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_no_random_point_of_the_plane_is_nearer_in_many_dimensions(norm, share):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 16, 16, generator=g)
    w = torch.randn(x.shape, generator=g) * torch.randn(x.shape, generator=g).exp()
    value = share * capacity(x.flatten(1), w.flatten(1), 1.0)
    ball = Ball(norm, 1.0)
    d = to_plane(x, w, value, ball)
    assert d.shape == x.shape and torch.allclose(
        value + dot(w, d), torch.zeros(8), atol=1e-5 * float(value.max())
    )
    for _ in range(10):
        mask = torch.rand(x.shape, generator=g) < 0.97  # another way to the plane: without some pixels
        step = 0.1 * length(d, norm).reshape(-1, 1, 1, 1) / x[0].numel() * torch.randn(x.shape, generator=g)
        near = (x + d + step).clamp(0, 1)  # and one beside ours, brought back to the plane
        for other in (
            to_plane(x, w * mask, value, ball),
            near - x + to_plane(near, w, value + dot(w, near - x), ball),
        ):
            met = (value + dot(w, other)).abs() <= 1e-4 * value
            assert met.any() and (length(d, norm)[met] <= length(other, norm)[met] * (1 + 1e-4)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_box_in_the_way_the_distance_is_the_value_over_the_dual_norm(norm):
    g = torch.Generator().manual_seed(1)
    w, value = torch.randn(6, 50, generator=g), 1e-2 * torch.randn(6, generator=g)
    d = to_plane(torch.full((6, 50), 0.5), w, value, Ball(norm, 1.0))
    assert torch.allclose(length(d, norm), value.abs() / dual_length(w, norm), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("first", [0.0, 1e-9])
def test_a_large_weight_without_room_hides_no_small_ones(norm, first):
    x, w = torch.tensor([[first, 0.5, 0.5]]), torch.tensor([[1.0, 1e-8, 1e-8]])
    d = to_plane(x, w, torch.tensor([first + 4e-9]), Ball(norm, 1.0))
    assert d.sum().item() == pytest.approx(-0.4, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_depend_on_its_batch(norm):
    """Trap: rounds run until the slowest row is done must not move the others."""
    g = torch.Generator().manual_seed(2)
    x, w = torch.rand(16, 200, generator=g), torch.randn(16, 200, generator=g)
    value = torch.linspace(-1.2, 1.2, 16) * capacity(x, w, 1.0)
    ball = Ball(norm, 1.0)
    whole = to_plane(x, w, value, ball)
    single = torch.cat([to_plane(x[k : k + 1], w[k : k + 1], value[k : k + 1], ball) for k in range(16)])
    assert torch.equal(whole, single)


@pytest.mark.parametrize("norm", NORMS)
def test_another_box_and_no_rows(norm):
    x, w = torch.full((1, 2), 0.5), torch.tensor([[1.0, 1.0]])
    assert to_plane(x, w, torch.tensor([9.0]), Ball(norm, 1.0, low=-1.0, high=2.0)).tolist() == [[-1.5, -1.5]]
    assert to_plane(x, w, torch.tensor([-9.0]), Ball(norm, 1.0, low=-1.0, high=2.0)).tolist() == [[1.5, 1.5]]
    assert to_plane(x[:0], w[:0], torch.zeros(0), Ball(norm, 1.0)).shape == (0, 2)


@pytest.mark.parametrize(("norm", "moved"), [("l2", 0.0), ("l1", 0.0), ("linf", 0.5)])
def test_slopes_that_are_rounding_move_no_pixel_towards_a_corner(norm, moved):
    """In a search far from the boundary the plane is out of reach, and noise is no direction."""
    w = torch.tensor([[1.0, 1e-4, 2.0**-24, -1e-9]])
    d = to_plane(torch.full((1, 4), 0.5), w, torch.tensor([-10.0]), Ball(norm, 1.0))
    assert torch.allclose(d, torch.tensor([[0.5, 0.5, moved, -moved]]))
