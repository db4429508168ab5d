"""No point of a region breaks its bounds: random networks of every operation, random points, corners, PGD.

`make test-slow` makes 10,000 attempts, the suite 500. Small networks are checked against exact rationals.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcli.core.bounds import METHODS, Program, interval, margins, trace
from robustcli.core.geometry import Ball

SIDE, POINTS = 5, 20
Layer = Callable[[int], nn.Module]


class Around(nn.Module):
    """x + f(x) or x - f(x)."""

    def __init__(self, inner: nn.Module, sign: int) -> None:
        super().__init__()
        self.inner, self.sign = inner, sign

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if self.sign > 0 else x - self.inner(x)


class Beside(nn.Module):
    """(x, f(x)) along the channels, then a convolution back to as many."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.back = nn.Conv2d(channels, 1, 3, padding=1), nn.Conv2d(channels + 1, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        back: Tensor = self.back(torch.cat((x, torch.sigmoid(self.inner(x))), 1))
        return back


LAYERS: dict[str, Layer] = {
    "conv": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "dilated": lambda c: nn.Conv2d(c, c, 2, padding=1, dilation=2, bias=False),
    "strided": lambda c: nn.Conv2d(c, c, 3, 2, 1, groups=c),
    "same": lambda c: nn.Conv2d(c, c, 3, padding="same"),
    "bn": lambda c: nn.BatchNorm2d(c),
    "relu": lambda c: nn.ReLU(),
    "leaky": lambda c: nn.LeakyReLU(0.3),
    "relu6": lambda c: nn.ReLU6(),
    "hardtanh": lambda c: nn.Hardtanh(-0.5, 0.7),
    "silu": lambda c: nn.SiLU(),
    "gelu": lambda c: nn.GELU(),
    "gelu-tanh": lambda c: nn.GELU(approximate="tanh"),
    "sigmoid": lambda c: nn.Sigmoid(),
    "tanh": lambda c: nn.Tanh(),
    "max": lambda c: nn.MaxPool2d(2, 1, 1),
    "max-strided": lambda c: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "average": lambda c: nn.AvgPool2d(2, 2, ceil_mode=True),
    "adaptive": lambda c: nn.AdaptiveAvgPool2d(3),
    "pad": lambda c: nn.ZeroPad2d((1, 0, 0, 1)),
    "up": lambda c: nn.Upsample(scale_factor=2),
    "dropout": lambda c: nn.Dropout(0.5),
    "identity": lambda c: nn.Identity(),
    "residual": lambda c: Around(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU()), 1),
    "minus": lambda c: Around(nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 1)), -1),
    "beside": lambda c: Beside(c),
}


def network(names: list[str], act: str, seed: int, scale: float) -> nn.Module:
    """A convolution, the named layers, and two linear layers with one activation between; random weights."""
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *(LAYERS[name](2) for name in names), nn.Flatten())
    with torch.no_grad():
        features = body(torch.zeros(1, 1, SIDE, SIDE)).shape[1]
    net = nn.Sequential(body, nn.Linear(features, 4), LAYERS[act](1), nn.Linear(4, 3)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            fan = max(1, p[0].numel())
            p.copy_(scale * torch.randn(p.shape, generator=generator) / fan**0.5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(2, generator=generator))
                module.running_var.copy_(0.1 + torch.rand(2, generator=generator))
    return net


def attempts(net: nn.Module, x: Tensor, y: Tensor, ball: Ball, count: int, seed: int) -> list[Tensor]:
    """Points of the region: random ones, corners, and those of a PGD from the last of them."""
    generator, found = torch.Generator().manual_seed(seed), [x]
    for number in range(count // 2):
        d = 2 * torch.rand(x.shape, generator=generator) - 1
        found.append(ball.project(x, x + ball.eps * (d.sign() if number % 2 else d * x[0].numel())))
    point = found[-1]
    for _ in range(count - len(found)):
        point = point.detach().requires_grad_()
        logits = net(point)
        worst = (logits - 1e9 * nn.functional.one_hot(y, 3)).amax(1) - logits.gather(1, y[:, None])[:, 0]
        (slope,) = torch.autograd.grad(worst.sum(), point)
        point = ball.project(x, point.detach() + ball.eps / 2 * ball.steepest(slope, point.detach()))
        found.append(point)
    return found


def holds(names: list[str], act: str, norm: str, eps: float, method: str, seed: int, scale: float) -> None:
    """No attempt gets below the proven margins, in float32 or in float64."""
    net = network(names, act, seed, scale)
    x = torch.rand((2, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(seed + 1))
    program, ball = trace(net, (1, SIDE, SIDE)), Ball(norm, eps)
    y = net(x).argmax(1)
    proven = margins(program, x, y, ball, method=method, alpha_steps=3)
    own = torch.nn.functional.one_hot(y, 3).bool()
    tried = attempts(net, x, y, ball, POINTS, seed)
    logits = {"float32": [net(z).double() for z in tried]}
    net.double()
    logits["float64"] = [net(z.double()) for z in tried]
    for kind, answers in logits.items():
        for z in answers:
            margin = (z.gather(1, y[:, None]) - z).detach()
            assert ((margin >= proven) | own).all(), (kind, float((proven - margin)[~own].max()))


SEARCH = {
    "names": st.lists(st.sampled_from(sorted(LAYERS)), max_size=4),
    "act": st.sampled_from(("relu", "leaky", "relu6", "silu", "gelu", "gelu-tanh", "sigmoid", "tanh")),
    "norm": st.sampled_from(("linf", "l2", "l1")),  # l0 has no bounds
    "eps": st.sampled_from((0.0, 0.01, 0.1, 0.5)),
    "method": st.sampled_from(METHODS),
    "seed": st.integers(0, 2**20),
    "scale": st.sampled_from((0.5, 2.0, 30.0)),
}
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=500 // POINTS, derandomize=True, **QUIET)
@given(**SEARCH)
def test_no_attempt_breaks_a_bound(**drawn: object) -> None:
    holds(**drawn)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=10_000 // POINTS, **QUIET)
@given(**SEARCH)
def test_no_attempt_of_many_breaks_a_bound(**drawn: object) -> None:
    holds(**drawn)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
def test_each_operation_alone(name: str) -> None:
    for method, norm, eps in (("crown", "linf", 0.1), ("crown-ibp", "l2", 0.0)):
        holds([name, "relu"], "relu", norm, eps, method, seed=7, scale=2.0)


# ---- exact rationals ---------------------------------------------------------------------------------------


def exact(tensor: Tensor) -> list[Fraction]:
    """The numbers of a tensor, exactly."""
    return [Fraction(value) for value in tensor.detach().double().flatten().tolist()]


def affine(layer: nn.Linear, x: list[Fraction]) -> list[Fraction]:
    width = len(x)
    weight, bias = exact(layer.weight), exact(layer.bias)
    return [
        sum((weight[row * width + i] * x[i] for i in range(width)), bias[row]) for row in range(len(bias))
    ]


def rational(net: nn.Sequential, x: list[Fraction]) -> list[Fraction]:
    """The real-valued network [Flatten, Linear, ReLU, Linear, ...] at a rational point."""
    for layer in net:
        if isinstance(layer, nn.Linear):
            x = affine(layer, x)
        elif isinstance(layer, nn.ReLU):
            x = [max(value, Fraction(0)) for value in x]
    return x


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_in_exact_arithmetic(seed: int) -> None:
    """The real network at all corners of a box, exactly; weights that cancel, so that rounding counts."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.mul_(10.0**seed)
        net[3].weight[:, 1] = -net[3].weight[:, 0] * (1 + 1e-6)
    x = torch.rand(1, 1, 2, 2)
    program, ball, y = trace(net.eval(), (1, 2, 2)), Ball("linf", 0.03125), net(x).argmax(1)
    low, high = (x - ball.eps).clamp(0, 1), (x + ball.eps).clamp(0, 1)
    box = [exact(side) for side in interval(program, low, high)]
    proven = {
        method: exact(margins(program, x, y, ball, method=method)[0].clamp(max=1e9)) for method in METHODS
    }
    for corner in itertools.product(*zip(exact(low), exact(high), strict=True)):
        z = rational(net, list(corner))
        assert all(a <= value <= b for a, value, b in zip(box[0], z, box[1], strict=True))
        for method in METHODS:
            for k in range(3):
                assert k == int(y) or z[int(y)] - z[k] >= proven[method][k], method


def test_a_linear_network_has_its_exact_minimum() -> None:
    """Without a bend backward bounds are exact: below the rational minimum by rounding alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3)).eval()
    x = torch.full((1, 1, 2, 2), 0.5)
    program, eps = trace(net, (1, 2, 2)), 0.25
    proven = margins(program, x, torch.tensor([0]), Ball("linf", eps), method="crown-ibp")[0]
    corners = itertools.product((Fraction(1, 4), Fraction(3, 4)), repeat=4)
    answers = [rational(net, list(corner)) for corner in corners]
    for k in (1, 2):
        least = min(z[0] - z[k] for z in answers)
        assert 0 <= least - Fraction(float(proven[k])) < Fraction(1, 10**5)


# ---- lines -------------------------------------------------------------------------------------------------


def bend(program: Program) -> object:
    return program.steps[-1].op


CURVE = {"silu": 0.5, "gelu": 0.8, "gelu-tanh": 0.81, "sigmoid": 0.1, "tanh": 0.77}  # largest |f''|


@pytest.mark.parametrize("name", ["relu", "leaky", "relu6", "hardtanh", *CURVE])
def test_lines_enclose_their_function(name: str) -> None:
    """At 4,001 points h apart; between two of them f - line is off by |f''| h^2 / 8 at most (0 if straight).

    The lines of smooth functions touch them, up to the tolerance of their bisection.
    """
    program = trace(nn.Sequential(nn.Flatten(), LAYERS[name](1)), (1, 1, 1))
    op, draw = bend(program), random.Random(0)
    for _ in range(40):
        width = 10 ** draw.uniform(-5, 1.2)
        low = draw.uniform(-6, 6) - width / 2
        box = torch.tensor([low]).double(), torch.tensor([low + width]).double()
        low_slope, under, high_slope, over = op.lines(box)  # type: ignore[attr-defined]
        x = torch.linspace(0, 1, 4001).double() * (box[1] - box[0]) + box[0]
        f = op.forward((), x)  # type: ignore[attr-defined]
        between = CURVE.get(name, 0.0) * (width / 4000) ** 2 / 8
        assert between < 2e-6
        below, above = f - (low_slope * x + under), low_slope.new_zeros(1) + high_slope * x + over - f
        rounding = 1e-15 * (1 + abs(low) + width) * 8
        assert float(below.min()) >= -rounding and float(above.min()) >= -rounding, (low, width)
        if name in CURVE:  # the lines touch it, and no sample is so near that the gap between could break it
            assert (
                float(below.min()) < 1e-6 * (1 + width) ** 2 and float(above.min()) < 1e-6 * (1 + width) ** 2
            )


@pytest.mark.parametrize("name", CURVE)
def test_what_the_proof_of_lines_needs(name: str) -> None:
    """f' is the derivative; f'' has the stated sign on each piece, and the stated bound; low is a minimum."""
    op = bend(trace(nn.Sequential(nn.Flatten(), LAYERS[name](1)), (1, 1, 1)))
    x = torch.linspace(-12, 12, 9601).double().requires_grad_()
    (slope,) = torch.autograd.grad(op.forward((), x).sum(), x, create_graph=True)  # type: ignore[attr-defined]
    assert torch.allclose(slope, op.slope(x), atol=1e-12)  # type: ignore[attr-defined]
    (curve,) = torch.autograd.grad(slope.sum(), x)
    assert float(curve.abs().max()) <= CURVE[name] * (1 + 1e-9)
    edges = (-math.inf, *op.inflections, math.inf)  # type: ignore[attr-defined]
    for piece, (left, right) in enumerate(itertools.pairwise(edges)):
        sign = 1 if piece % 2 == op.convex % 2 else -1  # type: ignore[attr-defined]
        part = curve[(x > left) & (x < right)]
        assert (sign * part >= -1e-13).all(), piece
    if op.low is not None:  # type: ignore[attr-defined]
        place, value = op.low  # type: ignore[attr-defined]
        assert float(op.forward((), x.detach()).min()) >= value - 1e-16  # type: ignore[attr-defined]
        assert abs(float(op.slope(torch.tensor(place, dtype=torch.float64)))) < 1e-12  # type: ignore[attr-defined]
