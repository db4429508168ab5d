"""Rotations and translations."""

import pytest
import torch
from torch import nn

from robustcli.attacks import spatial as module
from robustcli.attacks.spatial import spatial
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, ce
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.head(x.flatten(1))


def ask(x, keep="best", ball=None, watch=None, seed=0, ids=None, y=None, **params):
    net = Net()
    y = torch.zeros(len(x), dtype=torch.int64) if y is None else y
    oracle = Oracle(
        net,
        x,
        Criterion(y),
        rng=RowRandom(seed, "start", torch.arange(len(x)) if ids is None else ids),
        keep=keep,
        watch=watch,
    )
    with frozen(net):
        return spatial(oracle, x, ball or Ball("linf", 0.0), **params), net, oracle


def test_the_grid_holds_every_combination_and_the_identity_once():
    poses = list(module._grid(31, 5))
    assert len(poses) == len(set(poses)) == 775 and poses.count((0.0, 0.0, 0.0)) == 1
    for k in range(3):
        assert {pose[k] for pose in poses} >= {-1.0, 0.0, 1.0}
    assert list(module._grid(1, 1)) == [(0.0, 0.0, 0.0)]


def test_the_grid_asks_once_per_pose_and_returns_the_worst():
    torch.manual_seed(1)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    x_adv, net, _ = ask(x, grid=True, angles=3, shifts=3, y=y)
    assert len(net.seen) == 28
    with torch.no_grad():
        worst = torch.stack([ce(net(point), y) for point in list(net.seen)]).amax(0)
        hit = net(x_adv).argmax(1) != y
        assert (hit | torch.isclose(ce(net(x_adv), y), worst)).all()


def test_random_poses_stay_within_their_limits_and_differ_by_row(monkeypatch):
    poses, real = [], module.warp
    monkeypatch.setattr(
        module, "warp", lambda x, *pose: (poses.append(torch.stack(pose, 1)), real(x, *pose))[1]
    )
    ask(torch.rand(50, 1, 8, 8), rotation=20.0, translation=0.25, draws=20)
    angle, right, down = torch.cat(poses).unbind(1)
    limit = torch.pi / 9
    assert angle.abs().max() <= limit and angle.min() < -0.9 * limit and angle.max() > 0.9 * limit
    for shift in (right, down):
        assert shift.abs().max() <= 0.25 and shift.min() < -0.22 and shift.max() > 0.22
    assert len(set(poses[0][:, 0].tolist())) == 50


def test_no_pose_allowed_gives_the_image_back():
    x = torch.rand(3, 1, 8, 8)
    x_adv, _, _ = ask(x, keep="last", rotation=0.0, translation=0.0, draws=1)
    assert torch.allclose(x_adv, x, atol=1e-5)


def test_it_ignores_the_radius_but_not_the_box():
    x = 0.2 + 0.6 * torch.rand(3, 1, 8, 8)
    x_adv, _, _ = ask(x, keep="last", ball=Ball("l2", 0.0, 0.1, 0.9))
    assert (x_adv - x).abs().max() > 0.1 and x_adv.min() >= 0.1 and x_adv.max() <= 0.9


def test_broken_rows_leave_and_the_search_ends_with_the_last():
    x = torch.rand(6, 1, 8, 8)
    _, net, oracle = ask(
        x,
        grid=True,
        angles=5,
        shifts=5,
        watch=lambda rows, points: torch.ones(len(rows), dtype=torch.bool),
        rotation=180.0,
    )
    assert oracle.alive == 0 and oracle.forward_rows < 126 * 6 / 2


@pytest.mark.parametrize(
    "bad",
    [
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"translation": 1.5},
        {"translation": -0.1},
        {"draws": 0},
        {"angles": 0},
        {"shifts": 0},
    ],
)
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ask(torch.rand(1, 1, 8, 8), **bad)
