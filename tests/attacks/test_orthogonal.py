"""What is special about attacks on a class and a detector at once: orthogonal descent, a weighted loss."""

import pytest
import torch

from robustcli.attacks.orthogonal import orthogonal
from robustcli.attacks.pgd import pgd
from robustcli.attacks.weighted import weighted
from robustcli.core.apart import off
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

BALL = Ball("l2", 0.3)
ROWS = 4


def linear(class_axis, score_axis, threshold):
    """Two classes along one axis, rejected where the score along another is above the threshold."""

    def model(x):
        flat = x.flatten(1) - 0.5
        lead, score = flat @ class_axis, flat @ score_axis
        logits = torch.stack([-lead, lead], 1)
        return torch.cat([logits, logits.amax(1, keepdim=True) + (score - threshold)[:, None]], 1)

    return model


def axis(*values):
    return torch.tensor([*values, 0.0, 0.0, 0.0, 0.0][:4])


def asked(model, reject=2):
    x = torch.full((ROWS, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] -= 0.05
    criterion = Criterion(torch.zeros(ROWS, dtype=torch.int64), reject=reject)
    rng = RowRandom(0, "start", torch.arange(ROWS))
    return Oracle(model, x, criterion, rng=rng, keep="best"), x, criterion


def test_off_leaves_the_other_direction_alone_and_zero_is_no_direction():
    g = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    f = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    f[0] = 0
    left = off(g, f)
    assert torch.allclose((left * f).flatten(1).sum(1), torch.zeros(5), atol=1e-5)
    assert torch.equal(left[0], g[0])


# The way to the other class raises the score: plain PGD on the classes ends rejected everywhere.
AGAINST = linear(axis(1.0), axis(1.0, 1.0), 0.04)


@pytest.mark.parametrize("attack", [orthogonal, weighted])
def test_it_ends_wrong_and_accepted_where_the_classes_alone_lead_to_rejected_ground(attack):
    oracle, x, criterion = asked(AGAINST)
    assert not criterion.hit(AGAINST(x)).any()
    points = attack(oracle, x, BALL, steps=40)
    assert BALL.contains(x, points).all() and criterion.hit(AGAINST(points)).all()
    plain, _, _ = asked(lambda x: AGAINST(x)[:, :2], reject=None)
    assert not criterion.hit(AGAINST(pgd(plain, x, BALL, steps=40))).any()


@pytest.mark.parametrize("project", ["both", "detector", "classifier"])
def test_a_step_of_each_projection_is_orthogonal_to_what_it_leaves_alone(project):
    """One l2 step on a linear model: towards the class along f - proj_g(f), or along f itself."""
    f, g = axis(1.0), -axis(1.0, 1.0)
    oracle, x, _ = asked(AGAINST)
    moved = orthogonal(oracle, x, BALL, steps=1, step_size=0.02, start="zero", project=project)
    step = (moved - x).flatten(1)
    other = g if project in ("both", "classifier") else axis(0.0, 1.0)  # f has no part along the second
    assert (step @ f > 0).all() and torch.allclose(step @ other, torch.zeros(ROWS), atol=1e-6)


def test_without_a_guard_orthogonal_descent_is_pgd_on_cross_entropy():
    model = lambda x: AGAINST(x)[:, :2]  # noqa: E731
    oracle, x, _ = asked(model, reject=None)
    other, _, _ = asked(model, reject=None)
    assert torch.equal(orthogonal(oracle, x, BALL, steps=8), pgd(other, x, BALL, steps=8))
    assert oracle.forward_rows == other.forward_rows


def test_a_weight_too_large_and_one_too_small_are_both_left():
    """From 1e4 the loss sees the detector alone, from 1e-4 the class alone; rounds find what lies between."""
    for weight in (1e4, 1e-4):
        oracle, x, criterion = asked(AGAINST)
        assert not criterion.hit(AGAINST(weighted(oracle, x, BALL, rounds=1, weight=weight))).all()
        oracle, x, criterion = asked(AGAINST)
        assert criterion.hit(AGAINST(weighted(oracle, x, BALL, rounds=9, weight=weight))).all()


@pytest.mark.parametrize("attack, more", [(orthogonal, {"restarts": 0}), (weighted, {"rounds": 0})])
def test_counts_below_one_are_refused(attack, more):
    oracle, x, _ = asked(AGAINST)
    with pytest.raises(ValueError, match=">= 1"):
        attack(oracle, x, BALL, **more)


def test_a_raw_answer_has_the_column_of_reject_and_the_point_is_met_jointly():
    oracle, x, criterion = asked(AGAINST)
    answer = oracle.gradient(x, lambda z: z[:, 2], raw=True)
    assert answer.logits.shape == (ROWS, 3)
    assert torch.allclose(criterion.excess(answer.logits), criterion.excess(AGAINST(x)))
    assert oracle.gradient(x).logits.shape == (ROWS, 2)
