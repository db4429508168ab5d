"""Boxes hold what the network answers; the training walk is a pass of the network with boxes beside it."""

from __future__ import annotations

import copy

import pytest
import torch
from bounded import NETS, images, made
from torch import nn

from robustcli.core.bounds import interval, trace, walk


@pytest.mark.parametrize("name", NETS)
def test_a_box_holds_all_points_and_shrinks_to_the_answer(name: str) -> None:
    net, x = made(name), images(4)
    program = trace(net, tuple(x.shape[1:]))
    lower, upper = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    low, high = interval(program, lower, upper)
    with torch.no_grad():
        for draw in range(20):
            generator = torch.Generator().manual_seed(draw)
            share = torch.rand(x.shape, generator=generator)
            z = net(lower + (share.round() if draw % 2 else share) * (upper - lower))
            assert (z >= low).all() and (z <= high).all()
        point_low, point_high = interval(program, x, x)
        assert (point_low <= net(x)).all() and (net(x) <= point_high).all()
        assert float((point_high - point_low).max()) < 1e-2
    plain = interval(program, lower, upper, sound=False)
    assert (low < plain[0]).all() and (high > plain[1]).all()


def test_by_hand() -> None:
    """x in [0, 1] x [1, 2]; hidden (x1 - x2, x1 + x2) in ([-2, 0], [1, 3]); relu; 2 h1 - h2 in [-3, -1]."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        net[1].bias.zero_()
        net[3].weight.copy_(torch.tensor([[2.0, -1.0]]))
        net[3].bias.zero_()
    program = trace(net, (1, 1, 2))
    low, high = interval(program, torch.tensor([[[[0.0, 1]]]]), torch.tensor([[[[1.0, 2]]]]), sound=False)
    assert (low.item(), high.item()) == (-3.0, -1.0)


@pytest.mark.parametrize("name", ["residual", "relu"])
def test_the_walk_is_a_training_pass(name: str) -> None:
    """Logits, gradients of all weights, and running statistics are those of the network in train mode."""
    net, x = made(name).train(), images(8)
    other = copy.deepcopy(net)
    for one in (net, other):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    program = trace(net, tuple(x.shape[1:]))
    z, low, high = walk(program, x, x, x)
    wanted = other(x)
    assert torch.allclose(z, wanted, atol=1e-5) and torch.allclose(low, z, atol=1e-4)
    assert torch.allclose(high, z, atol=1e-4) and z.dtype is low.dtype is torch.float32
    z.square().sum().backward()
    wanted.square().sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-4 * float(q.grad.abs().max()) + 1e-6)
    for (key, p), q in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), key


def test_bounds_of_a_walk_are_differentiable_and_hold_for_the_batch() -> None:
    """In train mode the box around x holds the answer to x + d, normalised with the statistics of x."""
    net, x = made("relu").train(), images(8)
    program = trace(net, tuple(x.shape[1:]))
    z, low, high = walk(program, x, (x - 0.02).clamp(0, 1), (x + 0.02).clamp(0, 1))
    assert (low < z).all() and (z < high).all()
    (high - low).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.dim() > 1)


def test_dropout_in_training_has_one_mask() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 3)).train()
    x = images(4)
    z, low, high = walk(trace(net, (2, 6, 6)), x, x, x)
    assert torch.allclose(z, low, atol=1e-5) and torch.allclose(z, high, atol=1e-5)


def test_weights_are_those_of_the_moment() -> None:
    net, x = made("residual"), images(2)
    program = trace(net, tuple(x.shape[1:]))
    with torch.no_grad():
        net.head.weight.mul_(3)
        net.mean.add_(0.2)
    low, high = interval(program, x, x)
    assert (low <= net(x)).all() and (net(x) <= high).all()
