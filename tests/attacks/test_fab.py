"""FAB: minimal distances in closed form, a step's cost, when rows leave, traps of flat or broken models."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.fab import _random_start, _step
from robustcli.core.boundary import Boundary
from robustcli.core.geometry import Ball
from robustcli.core.hyperplane import dual_length, length, to_plane
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

NORMS = ("linf", "l2", "l1")
FAB, DEEPFOOL = (registry.attacks.get(name).fn for name in ("fab", "deepfool"))


def linear(classes, seed=0, spread=0.02):
    """A linear model whose logits are all 0 at grey, and images near grey: the box is out of the way."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    net[1].bias.data = -net[1].weight.data.sum(1) / 2
    return net, 0.5 + spread * (2 * torch.rand(6, 1, 8, 8) - 1)


def conv(classes=4, n=24):
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, classes),
    )
    return net, torch.rand(n, 1, 8, 8)


def search(net, x, ball, *, attack=FAB, y=None, target=None, keep="closest", watch=None, **params):
    with frozen(net):
        y = net(x).argmax(1) if y is None else y
        oracle = Oracle(
            net,
            x,
            Criterion(y, target),
            rng=RowRandom(0, "start", torch.arange(len(x))),
            keep=keep,
            ball=ball,
            watch=watch,
        )
        return attack(oracle, x, ball, **params), oracle


def boundaries(net, x, norm, y):
    """|z_y - z_k| / ||w_y - w_k||_q [B, K], the distance to each boundary; 0 at k = y."""
    with torch.no_grad():
        z, w = net(x), net[1].weight
        return torch.stack(
            [
                (z.gather(1, y[:, None])[:, 0] - z[:, k]) / dual_length(w[y] - w[k], norm).clamp_min(1e-9)
                for k in range(z.shape[1])
            ],
            1,
        )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("targeted", [True, False])
def test_a_linear_model_is_broken_at_the_nearest_boundary(norm, classes, targeted):
    net, x = linear(classes)
    y, ball = net(x).argmax(1), Ball(norm, 0.1)
    found, _ = search(net, x, ball, steps=20, targeted=targeted)
    expected = boundaries(net, x, norm, y).scatter(1, y[:, None], float("inf")).amin(1)
    ratio = ball.distance(x, found) / expected
    assert (net(found).argmax(1) != y).all() and (ratio > 1 - 1e-4).all() and (ratio < 1.015).all()


@pytest.mark.parametrize(("eta", "kept"), [(1.01, 1.01), (1.4, 0.9 * 1.4)])
def test_the_first_step_crosses_a_flat_boundary_by_the_overshoot(eta, kept):
    """Where the point it goes back to is still a success, that one counts: it is nearer."""
    net, x = linear(2)
    y, ball = net(x).argmax(1), Ball("l2", 0.1)
    found, _ = search(net, x, ball, steps=1, eta=eta)
    assert torch.allclose(
        ball.distance(x, found).float() / boundaries(net, x, "l2", y).amax(1),
        torch.full((6,), kept),
        rtol=3e-3,
    )


@pytest.mark.parametrize(("alpha_max", "share"), [(0.0, 0.0), (0.1, 0.1), (1.0, None)])
def test_a_step_by_hand(alpha_max, share):
    """Two pixels, boundary at p = 0.5, x = (0.2, 0.5).

    From (0.4, 0.9) the ways are 0.1 and 0.3, from (0.56, 0.86) they are 0.06 and 0.3.
    """
    x = torch.tensor([0.2, 0.5]).expand(2, 1, 1, 2)
    x_adv = torch.tensor([[0.4, 0.9], [0.56, 0.86]]).reshape(2, 1, 1, 2)
    boundary = Boundary(
        torch.tensor([-0.1, 0.06]), torch.tensor([1.0, 0.0]).expand(2, 1, 1, 2), torch.tensor([False, True])
    )
    a = torch.tensor([0.25, 0.06 / 0.36]) if share is None else torch.full((2,), share)
    wanted = torch.stack((torch.full((2,), 0.5), torch.stack((0.9 - 0.4 * a[0], 0.86 - 0.36 * a[1]))), 1)
    assert torch.allclose(
        _step(x, x_adv, boundary, Ball("l2", 1.0), alpha_max, 1.0).reshape(2, 2), wanted, atol=1e-6
    )


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_in_the_way_lengthens_the_way_no_more_than_it_must(norm):
    net, _ = linear(2)
    x = torch.rand(
        6, 1, 8, 8, generator=torch.Generator().manual_seed(1)
    ).round()  # each pixel can move one way only
    ball, y = Ball(norm, 0.1), net(x).argmax(1)
    w, z = net[1].weight.detach(), net(x).detach()
    value, other = (z[:, 1] - z[:, 0]), (w[1] - w[0]).expand(6, -1).reshape(x.shape)
    shortest = length(to_plane(x, other, value, ball), norm)
    free = value.abs() / dual_length(other, norm)
    found, _ = search(net, x, ball, steps=30)
    ratio = ball.distance(x, found) / shortest
    assert (net(found).argmax(1) != y).all() and (shortest > free * (1 + 1e-4)).any()
    assert (ratio > 1 - 1e-3).all() and (ratio < 1.02).all() and found.amin() >= 0 and found.amax() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_nearer_than_deepfool(norm):
    net, x = conv()
    ball = Ball(norm, 0.1)
    by = {
        name: ball.distance(x, search(net, x, ball, attack=fn, steps=20)[0])
        for name, fn in (("fab", FAB), ("deepfool", DEEPFOOL))
    }
    assert (
        (by["fab"] > 0).all()
        and by["fab"].median() < by["deepfool"].median()
        and (by["fab"] <= by["deepfool"] * 1.02).float().mean() > 0.9
    )


def test_a_step_costs_two_forward_passes_and_a_backward_one():
    net, x = conv(n=4)
    _, oracle = search(net, x, Ball("linf", 0.1), steps=7)
    # One forward for the clean point, one for the last point.
    assert oracle.backward_rows == 4 * 7 * 3 and oracle.forward_rows == 4 * (2 * 7 * 3 + 2)
    _, oracle = search(net, x, Ball("linf", 0.1), steps=7, targets=2, restarts=2)
    assert oracle.backward_rows == 4 * 7 * 2 * 2
    _, oracle = search(net, x, Ball("linf", 0.1), steps=7, targeted=False)
    assert oracle.backward_rows == 4 * 7 * 3 and oracle.forward_rows == 4 * (7 * 3 + 7 + 2)


@pytest.mark.parametrize("classes", [3, 10])
def test_a_given_target_is_reached_and_no_other_class_counts(classes):
    net, x = linear(classes, seed=3)
    y = net(x).argmax(1)
    target, ball = (y + 1) % classes, Ball("l2", 0.1)
    found, oracle = search(net, x, ball, y=y, target=target, steps=60)
    assert torch.equal(net(found).argmax(1), target) and oracle.backward_rows == 6 * 60
    far = boundaries(net, x, "l2", y).gather(1, target[:, None])[:, 0]
    assert (ball.distance(x, found) >= far * (1 - 1e-4)).all()
    if classes == 3:
        assert (ball.distance(x, found) <= far * 1.3).all()


def test_after_a_success_the_next_plane_is_that_of_the_point_it_went_back_to():
    """A plane moved from the candidate is another one where the boundary bends.

    The trajectory is that of the published code.
    """
    net, x = conv(classes=3, n=8)
    y, ball, seen = net(x).argmax(1), Ball("l2", 0.1), []

    def spy(points):
        seen.append((points.detach().clone(), points.requires_grad))
        return net(points)

    with frozen(net):
        oracle = Oracle(
            spy, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(8)), keep="closest", ball=ball
        )
        FAB(oracle, x, ball, steps=12, targets=1)
        candidates, linearised = (
            [points for points, graded in seen[1:] if graded is wanted] for wanted in (False, True)
        )
        hits = torch.zeros(0, dtype=torch.bool)
        for candidate, after in zip(candidates[:-1], linearised[1:], strict=False):
            hit = net(candidate).argmax(1) != y
            expected = torch.where(hit[:, None, None, None], x + 0.9 * (candidate - x), candidate)
            assert torch.allclose(after, expected, atol=1e-6)
            hits = torch.cat((hits, hit))
    assert hits.any() and not hits.all()


@pytest.mark.parametrize(("skip", "left"), [(1, 2), (3, 0)])
def test_classes_that_a_stage_before_has_tried_are_left_out(skip, left):
    net, x = conv(n=4)
    _, oracle = search(net, x, Ball("linf", 0.1), steps=5, skip=skip)
    assert oracle.backward_rows == 4 * 5 * left and bool(oracle.notes) == (left == 0)
    _, oracle = search(net, x, Ball("linf", 0.1), steps=5, skip=skip, target=(net(x).argmax(1) + 1) % 4)
    assert oracle.backward_rows == 4 * 5  # a given target is not skipped


def test_misclassified_rows_keep_distance_zero():
    net, x = conv()
    y = net(x).argmax(1)
    y[::3] = (y[::3] + 1) % 4
    found, _ = search(net, x, Ball("linf", 0.1), y=y, steps=10)
    assert torch.equal(found[::3], x[::3]) and not (found[1::3] == x[1::3]).flatten(1).all(1).any()


class Flat(nn.Module):
    def forward(self, x):
        return torch.tensor([2.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :3]


class Broken(nn.Module):
    """NaN logits and gradients for rows of dark images, tiny gradients for the others."""

    def forward(self, x):
        mean = x.flatten(1).mean(1, keepdim=True)
        z = torch.cat((torch.ones_like(mean), 1e-30 * mean, -mean), 1)
        return torch.where(mean < 0.5, z / 0 * 0, z)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("net", [Flat(), Broken()], ids=["flat", "broken"])
@pytest.mark.parametrize("targeted", [True, False])
def test_no_gradient_gives_the_image_back_and_nothing_turns_nan(norm, net, targeted):
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(8, dtype=torch.int64)
    last, _ = search(net, x, Ball(norm, 0.1), y=y, steps=4, restarts=2, keep="last", targeted=targeted)
    assert torch.isfinite(last).all()
    once, _ = search(net, x, Ball(norm, 0.1), y=y, steps=4, keep="last", targeted=targeted)
    dark = x.flatten(1).mean(1) < 0.5
    still = dark if isinstance(net, Broken) else torch.ones_like(dark)
    assert torch.equal(once[still], x[still])
    kept, _ = search(net, x, Ball(norm, 0.1), y=y, steps=4, targeted=targeted)
    assert torch.equal(kept[still], x[still])


def test_rows_leave_as_soon_as_a_point_inside_the_ball_is_confirmed():
    net, x = conv()
    y = net(x).argmax(1)
    reached = Ball("linf", 0.1).distance(x, search(net, x, Ball("linf", 0.1), steps=20)[0])
    ball = Ball("linf", float(reached.quantile(0.7)))
    seen = []

    def watch(rows, points):
        assert ball.contains(x[rows], points).all() and (net(points).argmax(1) != y[rows]).all()
        seen.extend(rows.tolist())
        return torch.ones(len(rows), dtype=torch.bool)

    found, oracle = search(net, x, ball, watch=watch, steps=20)
    inside = ball.contains(x, found)
    assert len(seen) == len(set(seen)) == 24 - oracle.alive and 0 < oracle.alive < 24
    assert inside[seen].all() and int(inside.sum()) == len(seen) and oracle.backward_rows < 0.7 * 24 * 20 * 3
    assert (
        net(found).argmax(1) != y
    ).all()  # the others come back with their nearest success, outside the ball


def test_it_stops_when_every_row_has_left():
    net, x = conv(n=6)
    _, oracle = search(
        net,
        x,
        Ball("linf", 1.0),
        watch=lambda rows, points: torch.ones(len(rows), dtype=torch.bool),
        steps=50,
        restarts=5,
    )
    assert oracle.alive == 0 and oracle.backward_rows < 6 * 50


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_half_as_far_as_the_nearest_success_or_the_radius(norm):
    x, ball = torch.full((3, 1, 8, 8), 0.5), Ball(norm, 0.2)
    reach = torch.tensor([float("inf"), 0.1, 0.0])
    start = _random_start(x, reach, ball, RowRandom(0, "start", torch.arange(3)))
    assert torch.allclose(
        ball.distance(x, start), torch.tensor([0.1, 0.05, 0.0], dtype=torch.float64), atol=1e-6
    )
    assert (
        _random_start(
            torch.ones_like(x), reach, Ball(norm, 50.0), RowRandom(0, "start", torch.arange(3))
        ).amax()
        <= 1
    )


def test_every_restart_and_class_starts_in_a_direction_of_its_own():
    net, x = linear(3)
    seen = []

    def spy(points):
        if points.requires_grad:
            seen.append((points.detach() - x).flatten(1))
        return net(points)

    y = net(x).argmax(1)
    oracle = Oracle(
        spy, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(6)), keep="closest", ball=Ball("l2", 0.1)
    )
    FAB(oracle, x, Ball("l2", 0.1), steps=1, restarts=3)
    assert len(seen) == 6 and not seen[0].any() and not seen[1].any()
    ways = torch.stack([way / way.norm(dim=1, keepdim=True) for way in seen[2:]])  # [4, 6, 64]
    assert ((ways[:, None] * ways[None]).sum(3) < 0.9)[~torch.eye(4, dtype=torch.bool)].all()


@pytest.mark.parametrize("norm", NORMS)
def test_overflowing_products_leave_the_point_finite(norm):
    x, huge = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 1e38)
    for hit in (True, False):
        moved = _step(
            x,
            torch.full_like(x, 0.9),
            Boundary(torch.ones(1), huge, torch.tensor([hit])),
            Ball(norm, 0.1),
            0.1,
            1.05,
        )
        assert torch.isfinite(moved).all()


def test_more_restarts_never_find_a_farther_point():
    net, x = conv()
    ball = Ball("l2", 0.5)
    first, second = (
        ball.distance(x, search(net, x, ball, steps=5, restarts=restarts)[0]) for restarts in (1, 3)
    )
    assert (second <= first).all() and (second < first).any()


def test_a_random_start_leaves_out_the_search_from_the_clean_image():
    net, x = conv()
    ball = Ball("l2", 0.5)
    runs = {
        (start, n): search(net, x, ball, steps=3, targets=1, restarts=n, start=start)[0]
        for start, n in (("clean", 1), ("clean", 2), ("random", 1), ("random", 2))
    }
    assert not torch.equal(runs["clean", 1], runs["random", 1])
    far = {run: ball.distance(x, x_adv) for run, x_adv in runs.items()}
    assert (far["random", 2] <= far["random", 1]).all() and (far["clean", 2] <= far["clean", 1]).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"targets": 0},
        {"skip": -1},
        {"alpha_max": 1.5},
        {"alpha_max": float("nan")},
        {"eta": 0.9},
        {"beta": 0.0},
        {"beta": 1.1},
        {"steps": 0},
        {"restarts": 0},
        {"start": "nowhere"},
    ],
)
def test_bad_parameters_are_named(bad):
    net, x = linear(3)
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}.*{bad[name]}"):
        search(net, x, Ball("linf", 0.1), **bad)
