"""Added terms: by hand, zero weight, gradients, rows without a gradient, the draw of the ball."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch
from robustcli.objectives.gradalign import gradalign
from robustcli.objectives.nuclear import nuclear

ENTRIES = list(registry.regularizers)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(norm="linf", y_soft=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 1, 2, 2, generator=g, dtype=torch.float64)
    ids = torch.arange(6)
    return Batch(x, ids % 3, (x + 0.3).clamp(0, 1), ids, Ball(norm, 0.4), RowRandom(0, "start", ids), y_soft)


def gradients(net, b, at):
    """grad CE of each row on its own [6, 4]: no batch, no sum."""
    rows = []
    for i in range(len(at)):
        point = at[i : i + 1].clone().requires_grad_()
        rows.append(torch.autograd.grad(F.cross_entropy(net(point), b.y[i : i + 1]), point)[0].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_contract(entry):
    def forbidden(x):
        raise AssertionError("no pass at weight 0")

    net, b = network().float(), batch()
    b = Batch(b.x.float(), b.y, b.x_adv.float(), b.ids, b.ball, b.rng)
    term = entry.fn(net, b, weight=0.5)
    assert term.shape == () and term.requires_grad and float(term.detach()) > 0
    assert torch.allclose(entry.fn(net, b, weight=1.0), 2 * term)
    off = entry.fn(forbidden, b, weight=0.0)
    assert off.shape == () and float(off) == 0 and off.dtype == torch.float32
    with pytest.raises(ValueError, match="weight must be >= 0"):
        entry.fn(net, b, weight=-1.0)
    assert entry.facts.passes > 0 and not b.x.requires_grad and all(p.grad is None for p in net.parameters())
    assert re.search(r"Source: .*(arXiv:\d{4}\.\d{5}|openreview\.net/forum)", entry.fn.__doc__, re.DOTALL)


def test_nuclear_by_hand_and_its_gradient():
    net, b = network(), batch()
    d = (net(b.x_adv) - net(b.x)).detach()
    assert torch.allclose(nuclear(net, b, weight=2.0), 2 * torch.linalg.svdvals(d).sum() / 6)
    names = [n for n, _ in net.named_parameters()]

    def term(*parameters):
        return nuclear(
            lambda x: torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x),
            b,
            weight=1.0,
        )

    assert torch.autograd.gradcheck(
        term, tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradalign_by_hand(norm):
    net, b = network(), batch(norm)
    near = b.ball.random_point(b.x, b.rng.restart(-1))
    assert b.ball.contains(b.x, near).all() and not torch.equal(near, b.x)
    cos = F.cosine_similarity(gradients(net, b, b.x), gradients(net, b, near), dim=1)
    assert torch.allclose(gradalign(net, b, weight=0.7), 0.7 * (1 - cos.mean()))
    assert float(1 - cos.mean()) > 1e-3


def test_gradalign_differentiates_the_second_gradient_only():
    """grad of 1 - cos(constant, g(x + eta; w)), against finite differences with a fixed first gradient."""
    net, b = network(), batch()
    here = gradients(net, b, b.x)
    near = b.ball.random_point(b.x, b.rng.restart(-1))
    weight = net[1].weight
    (ours,) = torch.autograd.grad(gradalign(net, b, weight=1.0), weight)

    def value():
        return float((1 - F.cosine_similarity(here, gradients(net, b, near), dim=1)).mean())

    for i, j in ((0, 0), (3, 2), (7, 1)):
        slopes = []
        for move in (1e-5, -1e-5):
            with torch.no_grad():
                weight[i, j] += move
            slopes.append(value())
            with torch.no_grad():
                weight[i, j] -= move
        assert float(ours[i, j]) == pytest.approx((slopes[0] - slopes[1]) / 2e-5, rel=1e-5, abs=1e-9)
    assert (ours != 0).any()


def test_a_linear_binary_model_is_aligned_everywhere():
    """Two classes and linear logits: the gradient keeps its direction, so nothing is to be paid."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    b = batch()
    b = Batch(b.x, b.y % 2, b.x_adv, b.ids, b.ball, b.rng)
    assert abs(float(gradalign(net, b, weight=1.0).detach())) < 1e-12


def test_rows_without_a_gradient_leave_the_mean():
    """Trap: 0 / 0.

    Rows that saturate have no direction; with none left the term is 0 and its gradient finite.
    """
    net, b = network(), batch()
    dead = torch.tensor([True, False, False, True, False, False])

    def partly(x):
        return torch.where(dead[:, None], net(x).detach(), net(x))

    part = Batch(b.x[~dead], b.y[~dead], b.x_adv[~dead], b.ids[~dead], b.ball, b.rng.rows(~dead))
    assert torch.allclose(gradalign(partly, b, weight=1.0), gradalign(net, part, weight=1.0))
    none = gradalign(lambda x: 0 * net(x), b, weight=1.0)
    assert float(none.detach()) == 0
    assert all(
        g.isfinite().all()
        for g in torch.autograd.grad(none, list(net.parameters()), allow_unused=True)
        if g is not None
    )


def test_gradients_that_underflow_when_squared_have_a_direction():
    net, b = network().float(), batch()
    b = Batch(b.x.float(), b.y, b.x_adv.float(), b.ids, b.ball, b.rng)

    def tiny(x):
        return 1e-25 * net(x)

    plain = [
        g / g.norm(dim=1, keepdim=True)
        for g in (
            gradients(lambda x: 1e-6 * net(x), b, at)
            for at in (b.x, b.ball.random_point(b.x, b.rng.restart(-1)))
        )
    ]
    expected = 1 - (plain[0] * plain[1]).sum(1).mean()
    assert float(gradalign(tiny, b, weight=1.0).detach()) == pytest.approx(float(expected), rel=1e-3)


def test_the_point_of_gradalign_is_repeatable_and_no_start_of_an_attack():
    """Hooks ask for a batch's loss twice and must meet one point; an attack's first draw is another."""
    net, b = network(), batch()
    first = gradalign(net, b, weight=1.0)
    b.rng.uniform((3,))
    assert torch.equal(gradalign(net, b, weight=1.0), first)
    near, start = b.ball.random_point(b.x, b.rng.restart(-1)), b.ball.random_point(b.x, b.rng.restart(0))
    assert not torch.equal(near, start)
    later = Batch(b.x, b.y, b.x_adv, b.ids, b.ball, RowRandom(0, "start", b.ids, epoch=1))
    assert not torch.equal(gradalign(net, later, weight=1.0), first)


def test_gradalign_with_mixed_labels():
    net = network()
    hot = F.one_hot(batch().y, 3).double()
    assert torch.allclose(gradalign(net, batch(y_soft=hot), weight=1.0), gradalign(net, batch(), weight=1.0))
    assert not torch.allclose(
        gradalign(net, batch(y_soft=hot.roll(1, 1) * 0.4 + hot * 0.6), weight=1.0),
        gradalign(net, batch(), weight=1.0),
    )
