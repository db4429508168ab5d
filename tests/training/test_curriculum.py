"""The curriculum against its formulas: radius, steps, step size, and what an attack really does under it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli.attacks.fgsm import fgsm
from robustcli.attacks.mi_fgsm import mi_fgsm
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.training.curriculum import Curriculum, smoothed

EPS = 8 / 255
BALL = Ball("linf", EPS)
X = 0.25 + 0.5 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
SHARE = st.floats(0, 1)
UNTIL = st.floats(0, 1, exclude_max=True)
N_FGSM = {"steps": 1, "step_size": EPS, "start_scale": 2.0, "clip": False}


def run(curriculum, t, more_steps=0):
    """(x_adv, ball, forward and backward passes over one row)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    oracle = Oracle(net, X, Criterion(Y), rng=RowRandom(0, "start", torch.arange(6)))
    attack, ball = curriculum.at(t, more_steps)
    return attack(oracle, X, ball), ball, oracle.backward_rows // len(X)


def bound(curriculum, t, more_steps=0):
    return curriculum.at(t, more_steps)[0].keywords


def test_the_default_is_the_configured_attack():
    curriculum = Curriculum(pgd, {"steps": 3, "step_size": 0.01}, BALL)
    for t in (0.0, 0.3, 1.0):
        assert curriculum.at(t)[1] is BALL and bound(curriculum, t) == {"steps": 3, "step_size": 0.01}
    assert Curriculum(pgd, {}, BALL).steps == 10 and Curriculum(fgsm, {}, BALL).steps is None


def test_the_radius_grows_in_a_straight_line():
    curriculum = Curriculum(pgd, {"steps": 2, "step_size": 0.01}, BALL, eps_start=0.2, eps_until=0.5)
    for t, factor in ((0, 0.2), (0.125, 0.4), (0.25, 0.6), (0.5, 1), (0.9, 1)):
        attack, ball = curriculum.at(t)
        assert ball.eps == pytest.approx(EPS * factor) and attack.keywords["step_size"] == pytest.approx(
            0.01 * factor
        )
        assert (ball.norm, ball.low, ball.high) == ("linf", 0, 1)
    assert curriculum.at(0.5)[1] is BALL


def test_the_radius_waits_and_grows_smoothly():
    """Shi et al.: flat at first, then a straight line that begins with the slope of the curve."""
    curriculum = Curriculum(pgd, {}, BALL, 0.0, 0.6, eps_from=0.2, eps_shape="smoothed")
    assert [curriculum.share(t) for t in (0, 0.1, 0.2, 0.6, 0.8)] == [0, 0, 0, 1, 1]
    # c p^4 with c = 1 / (m^3 (m + 4 (1 - m))), m = 1/4: h(1/8) = c / 4096, h(1/4) = 1/13, h(1) = 1
    assert [curriculum.share(0.2 + 0.4 * p) for p in (1 / 8, 1 / 4, 5 / 8)] == pytest.approx(
        [1 / 208, 1 / 13, 7 / 13]
    )
    slopes = [(smoothed(1 / 4 + h) - smoothed(1 / 4)) / h for h in (-1e-6, 1e-6)]
    assert slopes == pytest.approx([16 / 13] * 2, rel=1e-4)
    line = Curriculum(pgd, {}, BALL, 0.5, 0.6, eps_from=0.2)
    assert [line.share(t) for t in (0.1, 0.2, 0.4, 0.6)] == pytest.approx([0.5, 0.5, 0.75, 1])


def test_a_step_size_of_null_is_left_to_the_attack():
    curriculum = Curriculum(mi_fgsm, {"steps": 4, "step_size": None}, BALL, eps_start=0.5, eps_until=0.5)
    assert bound(curriculum, 0.0, 1) == {"steps": 5, "step_size": None}
    x_adv, ball, _ = run(Curriculum(mi_fgsm, {"steps": 4}, BALL, eps_start=0.5, eps_until=0.5), 0.0)
    assert ball.distance(X, x_adv).numpy() == pytest.approx(
        [EPS / 2] * 6, rel=1e-5
    )  # momentum on a linear model walks straight to the border


def test_steps_grow_in_whole_numbers():
    curriculum = Curriculum(pgd, {"steps": 5}, BALL, steps_start=2, steps_until=0.6)
    assert [curriculum.steps_at(t) for t in (0, 0.19, 0.21, 0.39, 0.41, 0.59, 0.6, 1)] == [
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
    ]
    assert [curriculum.steps_at(t, 2) for t in (0, 0.41, 1)] == [4, 6, 7]
    assert [run(curriculum, t)[2] for t in (0, 0.41, 1)] == [2, 4, 5]


@pytest.mark.parametrize(
    ("params", "more", "expected"),
    [
        ({"steps": 10, "step_size": EPS / 4}, 0, EPS / 4),
        ({"steps": 10, "step_size": EPS / 4}, 1, 2.5 * EPS / 11),  # the reach stays 2.5 eps
        ({"steps": 10, "step_size": EPS}, 10, EPS / 2),  # more than 2.5 eps together: kept
        ({"steps": 2, "step_size": EPS / 10}, 1, EPS / 10),  # short of 2.5 eps: no step is shortened
        ({"steps": 1, "step_size": 1.25 * EPS}, 1, 1.25 * EPS),  # FGSM-RS
        ({"steps": 1, "step_size": 1.25 * EPS}, 2, 2.5 * EPS / 3),
        (N_FGSM, 0, EPS),
        (N_FGSM, 1, EPS / 2),
        (N_FGSM, 3, EPS / 4),
    ],
)
def test_step_sizes_of_a_longer_attack(params, more, expected):
    whole, half = Curriculum(pgd, params, BALL), Curriculum(pgd, params, BALL, eps_start=0.5, eps_until=0.9)
    assert bound(whole, 0.5, more)["step_size"] == pytest.approx(expected)
    assert bound(half, 0.0, more)["step_size"] == pytest.approx(expected / 2)
    assert bound(whole, 0.5, more)["steps"] == params["steps"] + more


@given(
    t=SHARE,
    later=SHARE,
    start=SHARE,
    until=UNTIL,
    first=st.integers(1, 9),
    steps_until=UNTIL,
    more=st.integers(0, 3),
    wait=st.floats(0, 0.99),
    shape=st.sampled_from(["linear", "smoothed"]),
)
def test_radius_and_steps_stay_in_bounds_and_never_fall(
    t, later, start, until, first, steps_until, more, wait, shape
):
    curriculum = Curriculum(pgd, {"steps": 9}, BALL, start, until, first, steps_until, wait * until, shape)
    t, later = sorted((t, later))
    assert start <= curriculum.share(t) <= curriculum.share(later) <= 1
    assert first + more <= curriculum.steps_at(t, more) <= curriculum.steps_at(later, more) <= 9 + more
    assert 0 <= curriculum.at(t, more)[1].eps <= EPS
    if later >= until:
        assert curriculum.share(later) == 1 and curriculum.at(later)[1] is BALL
    if later >= steps_until:
        assert curriculum.steps_at(later, more) == 9 + more


@given(n=st.integers(1, 12), ratio=st.floats(0.01, 4), more=st.integers(0, 8), clip=st.booleans())
def test_more_steps_shorten_a_step_but_not_the_reach(n, ratio, more, clip):
    curriculum = Curriculum(pgd, {"steps": n, "step_size": ratio * EPS, "clip": clip}, BALL)
    sizes = [bound(curriculum, 0.5, k)["step_size"] for k in (more, more + 1)]
    reach = [size * (n + k) for size, k in zip(sizes, (more, more + 1), strict=True)]
    assert sizes[1] <= sizes[0] <= ratio * EPS and reach[1] >= reach[0] * (1 - 1e-12) >= n * ratio * EPS * (
        1 - 1e-9
    )
    if not clip:
        assert reach[1] == pytest.approx(n * ratio * EPS)


@settings(max_examples=25, deadline=None)
@given(t=SHARE, start=SHARE, more=st.integers(0, 2))
def test_the_attack_stays_in_the_ball_of_its_time(t, start, more):
    curriculum = Curriculum(pgd, {"steps": 3, "step_size": EPS / 2}, BALL, start, 0.7, 1, 0.5)
    x_adv, ball, passes = run(curriculum, t, more)
    assert bool(ball.contains(X, x_adv).all()) and passes == (curriculum.steps_at(t, more) if ball.eps else 0)


@pytest.mark.parametrize(
    ("fn", "params"), [(pgd, N_FGSM), (pgd, {"start": "gaussian", "start_scale": 0.1}), (fgsm, {})]
)
def test_radius_0_is_the_image_itself_and_asks_nothing(fn, params):
    for curriculum in (
        Curriculum(fn, params, BALL, eps_start=0, eps_until=0.5),
        Curriculum(fn, params, Ball("l2", 0)),
    ):
        x_adv, ball, passes = run(curriculum, 0.0)
        assert torch.equal(x_adv, X) and ball.eps == 0 and passes == 0 and not x_adv.requires_grad


def test_an_attack_without_steps_follows_the_radius_only():
    curriculum = Curriculum(fgsm, {"loss": "ce"}, BALL, eps_start=0, eps_until=0.5, steps_until=0.3)
    x_adv, ball, passes = run(curriculum, 0.25)
    assert curriculum.steps_at(0.25) is None and passes == 1
    assert ball.eps == pytest.approx(EPS / 2) and ball.distance(X, x_adv).numpy() == pytest.approx(
        [EPS / 2] * 6, rel=1e-5
    )
    with pytest.raises(ValueError, match="cannot add 1 steps to fgsm"):
        curriculum.at(0.25, 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"eps_start": -0.1}, "eps_start"),
        ({"eps_start": 1.1}, "eps_start"),
        ({"eps_start": math.nan}, "eps_start"),
        ({"eps_until": 1.0}, "eps_until"),
        ({"eps_until": -0.1}, "eps_until"),
        ({"steps_until": 1.0}, "steps_until"),
        ({"eps_from": 0.1}, "eps_from"),
        ({"eps_from": 0.4, "eps_until": 0.4}, "eps_from"),
        ({"eps_from": math.nan, "eps_until": 0.4}, "eps_from"),
        ({"steps_start": 0}, "from 1 to"),
        ({"steps_start": 4}, "steps 3"),
        ({"fn": fgsm, "params": {}, "steps_start": 1}, "fgsm has none"),
    ],
)
def test_bad_values_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        Curriculum(**{"fn": pgd, "params": {"steps": 3}, "ball": BALL, **wrong})


@pytest.mark.parametrize(("t", "more"), [(-0.01, 0), (1.01, 0), (math.nan, 0), (0.5, -1)])
def test_bad_times_are_refused(t, more):
    with pytest.raises(ValueError, match="share of the run|cannot add"):
        Curriculum(pgd, {}, BALL).at(t, more)
