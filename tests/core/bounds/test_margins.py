"""Margins that are proven hold, are ordered by method, and do not depend on the batch."""

from __future__ import annotations

import math

import pytest
import torch
from bounded import NETS, SHAPE, images, made
from torch import Tensor, nn

from robustcli.core.bounds import (
    METHODS,
    analyse,
    differentiable_margins,
    forecast,
    margins,
    tighten,
    trace,
)
from robustcli.core.geometry import Ball, Norm

RADII: tuple[tuple[Norm, float], ...] = (("linf", 0.06), ("l2", 0.3), ("l1", 1.0))


def measured(net: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """z_y - z_k [B, K] as the network computes them; +inf for k = y."""
    with torch.no_grad():
        logits = net(z).double()
    return (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], math.inf)


def points(x: Tensor, ball: Ball, count: int, seed: int = 0) -> list[Tensor]:
    """Random points and corners of the region."""
    found, generator = [], torch.Generator().manual_seed(seed)
    for number in range(count):
        d = 2 * torch.rand(x.shape, generator=generator) - 1
        if number % 2:
            d = d.sign()
        if ball.norm == "l2":
            d = d / d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        if ball.norm == "l1":
            spike = torch.zeros_like(x).flatten(1)
            place = torch.randint(spike.shape[1], (len(x), 1), generator=generator)
            d = spike.scatter(1, place, d.flatten(1)[:, :1].sign()).reshape(x.shape)
        found.append((x + ball.eps * d).clamp(0, 1))
    return found


@pytest.mark.parametrize("name", NETS)
def test_margins_hold_and_are_ordered(name: str) -> None:
    net, x = made(name), images(3)
    program, y = trace(net, SHAPE), net(x).argmax(1)
    norms = (
        RADII if name in ("residual", "relu", "silu") else RADII[:1]
    )  # the norm matters at the pixels alone
    for norm, eps in norms:
        ball = Ball(norm, eps)
        found = {method: margins(program, x, y, ball, method=method, alpha_steps=4) for method in METHODS}
        for z in points(x, ball, 12):
            for method in METHODS:
                assert (found[method] <= measured(net, z, y)).all(), (norm, method)
        assert (found["crown"] >= found["ibp"]).all() and (found["alpha-crown"] >= found["crown"]).all()
        assert (found["crown-ibp"] >= found["ibp"]).all()
        smaller = margins(program, x, y, Ball(norm, eps / 2), method="crown")
        assert smaller.mean() >= found["crown"].mean()


def test_by_hand() -> None:
    """x in [-1, 1] (as pixels [0, 1], scaled by hand), h = relu(x), z = (h + 1, x).

    z_0 - z_1 = h - x + 1. Boxes: [0, 1] - [-1, 1] + 1, at least 0. CROWN: u = -l, so the line below h is 0:
    0 - x + 1 >= 0. With a slope s below: (s - 1) x + 1 >= s. One step of 0.25 proves 0.25, and is enough.
    """

    class Hand(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            x = pixels.flatten(1) * 2 - 1
            return torch.cat((torch.relu(x) + 1, x), 1)

    program, x, y = trace(Hand(), (1, 1, 1)), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    ball, wanted = Ball("linf", 0.5), {"ibp": 0.0, "crown-ibp": 0.0, "crown": 0.0}
    for method, value in wanted.items():
        assert float(margins(program, x, y, ball, method=method, sound=False)[0, 1]) == value
    best = margins(program, x, y, ball, method="alpha-crown", sound=False)
    assert float(best[0, 1]) == pytest.approx(0.25, abs=1e-6)
    sure = margins(program, x, y, ball, method="alpha-crown")
    assert float(best[0, 1]) - 1e-5 < float(sure[0, 1]) < float(best[0, 1]) and float(sure[0, 0]) == math.inf


@pytest.mark.parametrize("method", METHODS)
def test_an_image_alone_and_in_a_batch(method: str) -> None:
    net, x = made("relu"), images(5)
    program, y = trace(net, SHAPE), net(x).argmax(1)
    ball = Ball("linf", 0.1)
    together = margins(program, x, y, ball, method=method, alpha_steps=3)
    for one in range(5):
        alone = margins(program, x[one : one + 1], y[one : one + 1], ball, method=method, alpha_steps=3)
        assert torch.allclose(alone[0], together[one], rtol=1e-9, atol=1e-9)


def test_a_margin_that_is_proven_gains_nothing_by_those_that_need_more_steps() -> None:
    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)]
    net, x, ball = nn.Sequential(*layers).eval(), torch.rand(30, 1, 4, 4), Ball("linf", 0.03)
    program, y = trace(net, (1, 4, 4)), net(x).argmax(1)
    together = margins(program, x, y, ball, method="alpha-crown", alpha_steps=12)
    gained = (together > 0) & (margins(program, x, y, ball, method="crown") <= 0)
    one = int(gained.any(1).nonzero()[0])
    alone = margins(program, x[[one]], y[[one]], ball, method="alpha-crown", alpha_steps=12)
    assert torch.allclose(alone[0], together[one], rtol=1e-9, atol=1e-9)


def test_where_crown_is_looser_is_told() -> None:
    """An unstable ReLU with a lower line of slope 1 may fall below 0; the box does not."""
    net, x = made("relu6", scale=2.0), images(3)
    found = analyse(trace(net, SHAPE), x, net(x).argmax(1), Ball("l2", 0.3), method="crown")
    assert found.looser and all(0 < one.neurons <= one.asked and one.name for one in found.looser)
    assert analyse(trace(net, SHAPE), x, net(x).argmax(1), Ball("l2", 0.3), method="ibp").looser == []


def test_no_gradient_reaches_the_weights() -> None:
    net, x = made("relu").double(), images(2)
    program, y = trace(net.float(), SHAPE), net(x).argmax(1)
    net.double()
    margins(program, x, y, Ball("linf", 0.3), method="alpha-crown", alpha_steps=2)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["residual", "relu", "silu"])
def test_margins_of_training(name: str) -> None:
    """In eval mode they are the plain bounds of the certificate in float32; their gradient is a slope."""
    net, x = made(name), images(4)
    program, y = trace(net, SHAPE), torch.tensor([0, 1, 2, 0])
    lower, upper = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    logits, boxes, back = differentiable_margins(program, x, lower, upper, y)
    assert torch.allclose(logits, net(x), atol=1e-5) and back.dtype is torch.float32
    others = torch.ones_like(back, dtype=torch.bool).scatter(1, y[:, None], False)
    assert (back[~others] == 0).all() and (boxes[~others] == 0).all()
    for method, got in (("ibp", boxes), ("crown-ibp", torch.maximum(boxes, back))):
        wanted = margins(program, x, y, Ball("linf", 0.05), method=method, sound=False)
        assert torch.allclose(got[others].double(), wanted[others], rtol=1e-4, atol=1e-4)
    weight = next(p for p in net.parameters() if p.dim() == 4)
    (slope,) = torch.autograd.grad(back.sum(), weight)
    step = 1e-3 * slope / slope.norm()
    with torch.no_grad():
        weight.add_(step)
        ahead = differentiable_margins(program, x, lower, upper, y).crown.sum()
        weight.sub_(2 * step)
        behind = differentiable_margins(program, x, lower, upper, y).crown.sum()
    assert math.isclose(float(ahead - behind) / 2e-3, float(slope.norm()), rel_tol=0.05)


def test_methods_are_checked() -> None:
    net, x = made("relu"), images(1)
    program, y = trace(net, SHAPE), torch.tensor([0])
    with pytest.raises(ValueError, match="unknown method 'deeppoly'; known: ibp"):
        margins(program, x, y, Ball("linf", 0.1), method="deeppoly")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no method of training"):
        differentiable_margins(program, x, x, x, y, "alpha-crown")


def test_memory_is_forecast_and_held_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of one row gives the same bounds; the forecast grows with batch and method."""
    net, x = made("relu"), images(2)
    program, y, ball = trace(net, SHAPE), net(x).argmax(1), Ball("linf", 0.2)
    whole = margins(program, x, y, ball, method="alpha-crown", alpha_steps=2)
    sizes = [forecast(program, 2, method) for method in METHODS]
    assert sizes == sorted(sizes) and forecast(program, 4, "ibp") > 1.5 * sizes[0] > 0
    monkeypatch.setattr(tighten, "ROOM", {"": 1})
    assert torch.allclose(margins(program, x, y, ball, method="alpha-crown", alpha_steps=2), whole, atol=1e-9)
