"""DeepFool: the closed form on linear models, what it costs, where it stops."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core.boundary import nearest_boundary, rivals
from robustcli.core.geometry import Ball
from robustcli.core.hyperplane import dual_length
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

DEEPFOOL = registry.attacks.get("deepfool").fn
NORMS = registry.attacks.get("deepfool").facts.norms


def linear(classes):
    """Logits all 0 at grey, images near grey: the box is out of the way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)
    net[1].bias.data = -net[1].weight.data.sum(1) / 2
    return net, 0.5 + 0.02 * (2 * torch.rand(6, 1, 8, 8) - 1)


def conv(classes=4):
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, classes)
    ).requires_grad_(False)
    return net, torch.rand(16, 1, 8, 8)


def ask(net, x, ball, *, y=None, target=None, keep="closest", watch=None):
    y = net(x).argmax(1) if y is None else y
    return Oracle(
        net,
        x,
        Criterion(y, target),
        rng=RowRandom(0, "start", torch.arange(len(x))),
        keep=keep,
        ball=ball,
        watch=watch,
    )


def boundaries(net, x, norm, y):
    """|z_y - z_k| / ||w_y - w_k||_q [B, K], infinite at k = y."""
    z, w = net(x), net[1].weight
    away = torch.stack(
        [
            (z.gather(1, y[:, None])[:, 0] - z[:, k]) / dual_length(w[y] - w[k], norm).clamp_min(1e-9)
            for k in range(z.shape[1])
        ],
        1,
    )
    return away.scatter(1, y[:, None], float("inf"))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("overshoot", [0.02, 0.1])
def test_a_linear_model_is_crossed_at_its_nearest_boundary_by_the_overshoot(norm, classes, overshoot):
    net, x = linear(classes)
    ball, y = Ball(norm, 0.01), net(x).argmax(1)
    oracle = ask(net, x, ball)
    found = DEEPFOOL(oracle, x, ball, overshoot=overshoot)
    ratio = ball.distance(x, found) / boundaries(net, x, norm, y).amin(1)
    assert (net(found).argmax(1) != y).all() and torch.allclose(
        ratio.float(), torch.full((6,), 1 + overshoot), rtol=3e-3
    )
    # Clean point; one linearisation at it and one that sees all rows broken, K - 1 passes each; final point.
    assert oracle.backward_rows == 6 * 2 * (classes - 1) and oracle.forward_rows == 6 * (
        2 * (classes - 1) + 2
    )


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_boundary_is_the_nearest(norm):
    net, x = linear(10)
    ball, y = Ball(norm, 0.01), net(x).argmax(1)
    oracle = ask(net, x, ball)
    got = nearest_boundary(oracle, x, ball, rivals(oracle, 9))
    nearest = boundaries(net, x, norm, y).argmin(1)
    w, z = net[1].weight, net(x)
    assert torch.allclose(got.normal.flatten(1), w[nearest] - w[y], atol=1e-6) and not got.hit.any()
    assert torch.allclose(
        got.value, (z.gather(1, nearest[:, None]) - z.gather(1, y[:, None]))[:, 0], atol=1e-6
    )


def test_only_the_classes_asked_for_are_linearised():
    net, x = linear(10)
    ball = Ball("l2", 0.01)
    oracle = ask(net, x, ball)
    z = net(x)
    assert torch.equal(rivals(oracle, 3), z.sort(1, descending=True).indices[:, 1:4]) and rivals(
        oracle, 99
    ).shape == (6, 9)
    DEEPFOOL(oracle, x, ball, classes=4, steps=1)
    assert oracle.backward_rows == 6 * 3


@pytest.mark.parametrize("norm", NORMS)
def test_a_curved_model_is_broken_near_the_clean_image(norm):
    net, x = conv()
    ball, y = Ball(norm, 0.01), net(x).argmax(1)
    found = DEEPFOOL(ask(net, x, ball), x, ball)
    assert (net(found).argmax(1) != y).all() and found.amin() >= 0 and found.amax() <= 1
    halfway = net(x + 0.5 * (found - x)).argmax(1)
    assert (halfway == y).float().mean() > 0.9  # not far beyond the boundary


def test_a_given_target_is_reached():
    net, x = linear(10)
    ball, y = Ball("l2", 0.01), net(x).argmax(1)
    target = (y + 3) % 10
    oracle = ask(net, x, ball, y=y, target=target)
    assert torch.equal(rivals(oracle, 5), target[:, None])
    assert torch.equal(net(DEEPFOOL(oracle, x, ball)).argmax(1), target)


def test_misclassified_rows_stay_and_broken_rows_move_no_more():
    net, x = conv()
    y = net(x).argmax(1)
    y[::2] = (y[::2] + 1) % 4
    ball = Ball("l2", 0.01)
    found = DEEPFOOL(ask(net, x, ball, y=y, keep="last"), x, ball)  # the last point, not the nearest met
    assert torch.equal(found[::2], x[::2]) and (net(found).argmax(1) != y).all()
    kept = DEEPFOOL(ask(net, x, ball, y=y), x, ball)
    assert torch.equal(kept, found)


class Flat(nn.Module):
    def forward(self, x):
        return torch.tensor([2.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :3]


class Broken(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] / 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("net", [Flat(), Broken()], ids=["flat", "broken"])
def test_no_gradient_gives_the_image_back(norm, net):
    x, ball = torch.rand(4, 1, 4, 4), Ball(norm, 0.1)
    for keep in ("last", "closest"):
        oracle = ask(net, x, ball, y=torch.zeros(4, dtype=torch.int64), keep=keep)
        assert torch.equal(DEEPFOOL(oracle, x, ball, steps=3), x)


def test_rows_leave_when_a_point_inside_the_ball_is_confirmed_and_keep_it():
    net, x = conv()
    y = net(x).argmax(1)
    reached = Ball("linf", 0.1).distance(x, DEEPFOOL(ask(net, x, Ball("linf", 0.1)), x, Ball("linf", 0.1)))
    ball = Ball("linf", float(reached.median()))
    oracle = ask(net, x, ball, watch=lambda rows, points: torch.ones(len(rows), dtype=torch.bool))
    found = DEEPFOOL(oracle, x, ball)
    # A batch of another size rounds in another way: a row may cross a step later, by the overshoot of 2 %.
    # What is just wrong in one batch may be a tie in another.
    assert torch.allclose(ball.distance(x, found), reached, rtol=0.03)
    logits, own = net(found), y[:, None]
    others = logits.scatter(1, own, -torch.inf).amax(1)
    assert (others > logits.gather(1, own)[:, 0] - 1e-5).all()
    assert oracle.alive == 16 - int(ball.contains(x, found).sum()) and 0 < oracle.alive < 16


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"overshoot": -0.1}, {"overshoot": float("nan")}, {"classes": 1}]
)
def test_bad_parameters_are_named(bad):
    net, x = linear(3)
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}.*{bad[name]}"):
        DEEPFOOL(ask(net, x, Ball("l2", 0.1)), x, Ball("l2", 0.1), **bad)
