"""BSR: where the pixels go, and on another model than the one it searched on."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.bsr import bsr
from robustcli.attacks.mi_fgsm import mi_fgsm
from robustcli.core.blocks import shuffled_and_turned
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom


def stream(rows):
    return RowRandom(0, "start", torch.arange(rows))


def ask(net, x, y, **more):
    return Oracle(net, x, Criterion(y), rng=stream(len(x)), **more)


def ramp(rows, height=9, width=12):
    """Every pixel of an image differs."""
    return (
        torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).expand(rows, -1, -1, -1)
    )


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_without_turns_every_pixel_is_there_once(blocks):
    x = ramp(40)
    seen = shuffled_and_turned(x, stream(40), blocks, 0.0)
    assert torch.equal(seen.flatten(1).sort(1).values, x.flatten(1))
    assert (blocks > 1) == bool((seen != x).any()) and (seen[0] != seen[1]).any() == (blocks > 1)


def test_blocks_move_as_wholes_along_either_axis_first():
    """A neighbour to the right stays one, but at the borders of blocks."""
    x = ramp(200)
    seen = shuffled_and_turned(x, stream(200), 3, 0.0)[:, 0]
    across = (seen[:, :, 1:] - seen[:, :, :-1] != 1).sum((1, 2))
    down = (seen[:, 1:] - seen[:, :-1] != 12).sum((1, 2))
    assert int(across.max()) <= 6 * 9 and int(down.max()) <= 6 * 12
    straight = (seen // 12 == seen[:, :, :1] // 12).all(2).all(1)  # whole rows moved and nothing else
    assert not straight.all()
    rows_kept = (seen[:, :, 1:] // 12 == seen[:, :, :-1] // 12).all(2).all(1)
    assert 0.3 < float(rows_kept.float().mean()) < 0.8  # of about half of the images rows were strips first


def test_a_turn_is_one_about_the_centre():
    """One block turned is `core.warp.warp`, which turns the whole image, away from the border."""
    from robustcli.core.warp import warp

    x = torch.rand(6, 2, 15, 15, generator=torch.Generator().manual_seed(0))
    rng = stream(6)
    seen = shuffled_and_turned(x, rng, 1, 90.0)
    zero = torch.zeros(6)
    angles = torch.linspace(-1.6, 1.6, 6401)
    for row in range(6):
        many = warp(x[row : row + 1].expand(1, -1, -1, -1), zero[:1], zero[:1], zero[:1])
        assert torch.allclose(many, x[row : row + 1], atol=1e-5)
        tried = warp(x[row].expand(len(angles), -1, -1, -1), angles, *[torch.zeros(len(angles))] * 2)
        gap = (tried - seen[row])[:, :, 3:12, 3:12].abs().amax((1, 2, 3)).min()
        assert float(gap) < 5e-3


@pytest.mark.parametrize("norm", registry.attacks.get("bsr").facts.norms)
def test_one_block_without_turns_is_mi_fgsm(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 4))
    x = torch.rand(6, 2, 6, 6)
    y, ball = net(x).argmax(1), Ball(norm, {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm])
    with frozen(net):
        plain = mi_fgsm(ask(net, x, y), x, ball, steps=5)
        found = bsr(ask(net, x, y), x, ball, steps=5, copies=2, blocks=1, angle=0.0)
        other = bsr(ask(net, x, y), x, ball, steps=5, copies=2, blocks=2, angle=24.0)
    assert torch.allclose(found, plain, atol=1e-6) and not torch.allclose(other, plain, atol=1e-3)


@pytest.mark.parametrize(
    "bad", [{"copies": 0}, {"blocks": 0}, {"angle": 181.0}, {"decay": -1.0}, {"angle": float("nan")}]
)
def test_parameters_outside_their_range_are_refused(bad):
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match=next(iter(bad))):
        bsr(ask(net, x, torch.zeros(1, dtype=torch.int64)), x, Ball("linf", 0.1), **bad)
