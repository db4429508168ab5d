"""A patch: what it covers, what is searched inside, and one patch for all images."""

import pytest
import torch
from torch import nn

from robustcli.attacks.patch import NAME, Stored, patch, read_patch
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.stamp import Pose, draw_pose, places, side_of, stamp
from robustcli.errors import DataError
from robustcli.evaluation.patching import PatchFit

FIT = {"area": 0.25, "rotation": 20.0, "smallest": 0.8, "steps": 12, "batch_size": 8, "step_size": 0.4}
FIT |= {"dark": 0.1, "bright": 0.9, "tv": 0.0, "target": None, "seed": 0}


class Net(nn.Module):
    """Class 1 where bright pixels outweigh `lead`; with `signs` each pixel has a weight of its own."""

    def __init__(self, size=8, lead=2.0, signs=False):
        super().__init__()
        weight = torch.ones(size * size)
        if signs:
            weight = torch.where(
                torch.rand(size * size, generator=torch.Generator().manual_seed(3)) < 0.5, -1.0, 1.0
            )
        self.register_buffer("weight", weight)
        self.lead = lead

    def forward(self, x):
        score = (x.flatten(1) * self.weight).sum(1) - self.lead
        return torch.stack((-score, score), 1)


def ask(net, x, y=None, seed=0, **params):
    y = torch.zeros(len(x), dtype=torch.int64) if y is None else y
    oracle = Oracle(net, x, Criterion(y), rng=RowRandom(seed, "start", torch.arange(len(x))), keep="last")
    with frozen(net):
        return patch(oracle, x, Ball("linf", 0.0), **params), oracle


def test_a_square_covers_the_pixels_whose_centres_lie_in_it():
    x = torch.zeros(2, 1, 6, 8)
    pose = Pose(*(torch.tensor(v) for v in ([3.0, 5.0], [2.0, 4.0], [2.0, 4.0], [0.0, torch.pi / 2])))
    shown = stamp(x, torch.ones(1, 2, 2), pose)
    expected = torch.zeros_like(x)
    expected[0, :, 1:3, 2:4] = expected[1, :, 2:6, 3:7] = 1
    assert torch.equal(shown, expected)


def test_a_quarter_turn_is_clockwise_and_the_patch_keeps_its_pixels():
    own = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    pose = Pose(*(torch.tensor([v]) for v in (1.0, 1.0, 2.0, torch.pi / 2)))
    shown = stamp(torch.zeros(1, 1, 2, 2), own, pose)
    assert torch.allclose(shown[0, 0], torch.tensor([[0.3, 0.1], [0.4, 0.2]]), atol=1e-5)


def test_places_lie_inside_and_cover_the_share_that_was_asked_for():
    x = torch.zeros(400, 1, 32, 24)
    pose = draw_pose(RowRandom(0, "start", torch.arange(400)), x, 0.1, 45.0, 0.5)
    largest = side_of(0.1, 32, 24)
    assert pose.side.max() <= largest and pose.side.min() >= 0.5 * largest
    assert float(pose.side.min()) < 0.55 * largest and float(pose.side.max()) > 0.95 * largest
    reach = pose.side / 2 * (pose.angle.cos().abs() + pose.angle.sin().abs())
    assert (pose.right >= reach - 1e-4).all() and (pose.right <= 24 - reach + 1e-4).all()
    assert (pose.down >= reach - 1e-4).all() and (pose.down <= 32 - reach + 1e-4).all()
    count = places(x, pose)[0].flatten(1).sum(1)
    assert torch.allclose(count.float().mean(), (pose.side**2).mean(), rtol=0.02)


@pytest.mark.parametrize(("size", "area"), [(8, 0.1), (8, 1 / 64), (10, 0.03), (28, 0.05)])
def test_no_square_covers_more_than_its_share_of_the_pixels(size, area):
    x = torch.zeros(500, 1, size, size)
    pose = draw_pose(RowRandom(0, "start", torch.arange(500)), x, area, 22.5, 0.8)
    count = places(x, pose)[0].flatten(1).sum(1)
    assert count.max() == int(area * size * size + 1e-6)
    with pytest.raises(DataError, match="less than a pixel"):
        draw_pose(RowRandom(0, "start", torch.arange(500)), x, 0.9 / size**2, 22.5, 0.8)


@pytest.mark.parametrize("file", [None, "noise"])
def test_what_is_not_covered_stays_bitwise(file):
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    net = Net(size=16, lead=1e6)
    net.weight = torch.ones(768)
    x_adv, oracle = ask(net, x, file=file, area=0.1, draws=2, steps=3, dark=0.2, bright=0.7)
    moved = (x_adv != x).any(1).flatten(1).sum(1)
    assert (moved > 0).all() and (moved <= 256 * 0.1 + 2 * side_of(0.1, 16, 16)).all()
    inside = x_adv[(x_adv != x)]
    assert float(inside.min()) >= 0.2 and float(inside.max()) <= 0.7


def test_the_search_of_a_linear_model_ends_at_black_and_white():
    net, x = Net(signs=True, lead=3.0), torch.full((4, 1, 8, 8), 0.5)
    x_adv, _ = ask(net, x, area=0.25, draws=1, steps=40)
    moved = x_adv != x
    best = (net.weight.view(1, 1, 8, 8) > 0).float().expand_as(x)
    assert moved.flatten(1).any(1).all() and torch.allclose(x_adv[moved], best[moved])


def test_a_stored_patch_is_the_same_after_its_file_and_is_what_is_shown(tmp_path):
    own = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1))
    (tmp_path / NAME).write_bytes(Stored(own, 0.2, 10.0, 0.9).to_bytes())
    found = read_patch(str(tmp_path))
    assert torch.equal(found.patch, own) and found[1:] == (0.2, 10.0, 0.9)
    x, net = torch.full((3, 1, 8, 8), 0.5), Net(lead=1e6)
    x_adv, _ = ask(net, x, file=str(tmp_path / NAME), draws=1)
    pose = draw_pose(RowRandom(0, "start", torch.arange(3)), x, 0.2, 10.0, 0.9)
    assert torch.equal(x_adv, stamp(x, own, pose))


def test_what_is_no_patch_is_refused(tmp_path):
    x, net, path = torch.rand(2, 1, 8, 8), Net(), tmp_path / NAME
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(DataError, match="holds no patch"):
        ask(net, x, file=str(path))
    path.write_bytes(Stored(torch.full((1, 2, 2), torch.nan), 0.1, 0.0, 1.0).to_bytes())
    with pytest.raises(DataError, match=r"not in \[0, 1\]"):
        ask(net, x, file=str(path))
    path.write_bytes(Stored(torch.rand(3, 2, 2), 0.1, 0.0, 1.0).to_bytes())
    with pytest.raises(DataError, match="3"):
        ask(net, x, file=str(path))
    with pytest.raises(DataError, match="no patch was fitted"):
        ask(net, x, file="fitted")
    with pytest.raises(ValueError, match="dark"):
        ask(net, x, dark=0.9, bright=0.1)


def fit(net, x, y, ids, **changed):
    return PatchFit(**(FIT | changed)).run(net, x, y, ids, lambda share: None)


def test_the_fitted_patch_of_a_linear_model_is_as_bright_as_it_may_be():
    x, net = 0.2 * torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), Net(lead=14.0)
    y, ids = torch.zeros(24, dtype=torch.int64), torch.arange(24)
    found = fit(net, x, y, ids)
    assert found.shape == (1, 4, 4) and torch.allclose(found, torch.full_like(found, round(0.9 * 255) / 255))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    assert torch.equal(found, fit(net, x[order], y, ids[order])), "the order of the images changes nothing"
    with frozen(net):
        shown, _ = ask(net, x, file="noise", area=0.25, draws=1)
        laid = stamp(x, found, draw_pose(RowRandom(9, "start", ids), x, 0.25, 20.0, 0.8))
        assert net(laid).argmax(1).sum() > net(shown).argmax(1).sum()


def test_a_targeted_patch_leads_to_its_class_and_total_variation_smooths():
    generator = torch.Generator().manual_seed(0)
    x, ids = 0.6 + 0.2 * torch.rand(16, 1, 8, 8, generator=generator), torch.arange(16)
    y, net = torch.ones(16, dtype=torch.int64), Net(lead=30.0)
    dark = fit(net, x, y, ids, target=0)
    assert torch.allclose(dark, torch.full_like(dark, round(0.1 * 255) / 255))
    signs = Net(signs=True, lead=0.0)
    rough, smooth = fit(signs, x, y, ids), fit(signs, x, y, ids, tv=10.0)
    assert smooth.diff(dim=1).abs().sum() < rough.diff(dim=1).abs().sum()
