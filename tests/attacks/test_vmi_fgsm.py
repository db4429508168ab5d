"""VMI-FGSM against its formula, against MI-FGSM where the gradient does not vary, and on another model."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from robustcli import registry
from robustcli.attacks.mi_fgsm import mi_fgsm
from robustcli.attacks.vmi_fgsm import vmi_fgsm
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

EPS = {"linf": 0.2, "l2": 1.0, "l1": 6.0}


class Net(nn.Module):
    """Sines of a random convolution: its gradient turns within a small ball."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 36, 4)

    def forward(self, x):
        return 3 * self.head(torch.sin(4 * self.conv(x - 0.5)).flatten(1))


class Linear(nn.Module):
    """Two classes whose logit difference is <w, x>."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(2)))

    def forward(self, x):
        lead = (x * self.w).flatten(1).sum(1)
        return torch.stack((torch.zeros_like(lead), lead), 1)


def images(rows=6, seed=1):
    return torch.rand(rows, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def ask(net, x, y, **more):
    return Oracle(net, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(len(x))), **more)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_each_point_follows_the_formula(decay):
    net, x = Net(), images()
    y, ball, steps, samples, beta = net(x).argmax(1), Ball("linf", 0.1), 5, 3, 1.5
    with frozen(net):
        x_adv = vmi_fgsm(ask(net, x, y), x, ball, steps=steps, decay=decay, samples=samples, beta=beta)

        def grad_at(z, row):
            z = z.clone().requires_grad_(True)
            return torch.autograd.grad(F.cross_entropy(net(z), y[row : row + 1]), z)[0]

        for row in range(len(x)):
            rng = RowRandom(0, "start", torch.tensor([row]))
            origin = x[row : row + 1]
            z, g, v = origin, torch.zeros_like(origin), torch.zeros_like(origin)
            for _ in range(steps):
                grad = grad_at(z, row)
                g = decay * g + (grad + v) / (grad + v).abs().sum()  # the paper's l1 norm; ours is the mean
                near = [
                    (z + beta * 0.1 * (2 * rng.uniform((2, 6, 6)) - 1)).clamp(0, 1) for _ in range(samples)
                ]
                v = sum(grad_at(point, row) for point in near) / samples - grad
                z = ball.project(origin, z + 0.1 / steps * g.sign())
            assert torch.allclose(x_adv[row], z[0], atol=1e-5)


@pytest.mark.parametrize("norm", registry.attacks.get("vmi_fgsm").facts.norms)
def test_on_a_linear_model_it_is_mi_fgsm_and_exact(norm):
    """The gradient of the margin is w everywhere, so that its variance is 0: gain = eps * ||w||_q."""
    net, x, ball = Linear(), 0.5 + 0.01 * images(), Ball(norm, EPS[norm] / 50)
    y = torch.zeros(6, dtype=torch.int64)
    settings = {"steps": 20, "step_size": ball.eps / 2, "loss": "margin"}
    varied = vmi_fgsm(ask(net, x, y), x, ball, **settings)
    assert torch.equal(varied, mi_fgsm(ask(net, x, y), x, ball, **settings))
    dual = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    gain = ((varied - x) * net.w).flatten(1).sum(1)
    expected = ball.eps * torch.linalg.vector_norm(net.w.flatten(), ord=dual)
    assert torch.allclose(gain, expected.expand(6), rtol=1e-3)


@pytest.mark.parametrize("norm", registry.attacks.get("vmi_fgsm").facts.norms)
def test_without_a_neighbourhood_it_is_mi_fgsm_and_with_one_it_is_not(norm):
    net, x, ball = Net(), images(), Ball(norm, EPS[norm])
    y = net(x).argmax(1)
    with frozen(net):
        plain = mi_fgsm(ask(net, x, y), x, ball, steps=8)
        assert torch.equal(vmi_fgsm(ask(net, x, y), x, ball, steps=8, beta=0.0), plain)
        assert not torch.allclose(vmi_fgsm(ask(net, x, y), x, ball, steps=8), plain, atol=1e-3)


class Digits(nn.Module):
    """Two layers of sines, for digits of 8 x 8 pixels."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12 * 64, 10)

    def forward(self, x):
        return self.head(torch.sin(3 * self.second(torch.sin(3 * self.first(2 * x - 1)))).flatten(1))


def trained(seed, x, y):
    net = Digits(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def test_its_points_fool_another_model_more_often_than_those_of_mi_fgsm():
    """Of these pairs of models the first five all agree; this one leaves the most room."""
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    source, other = (trained(seed, x[:500], y[:500]) for seed in (4, 5))
    x, y = x[500:700], y[500:700]
    right = (source(x).argmax(1) == y) & (other(x).argmax(1) == y)
    x, y, ball = x[right], y[right], Ball("linf", 0.2)
    with frozen(source), frozen(other):
        of_mi, of_vmi = (
            int((other(attack(ask(source, x, y), x, ball)).argmax(1) != y).sum())
            for attack in (mi_fgsm, vmi_fgsm)
        )
    assert len(x) > 150 and of_vmi > of_mi


def test_what_it_costs_and_that_neighbours_do_not_count_as_points():
    net, x = Net(), images()
    y, ball = net(x).argmax(1), Ball("linf", 1e-3)
    with frozen(net):
        oracle = ask(net, x, y, keep="best")
        x_adv = vmi_fgsm(oracle, x, ball, steps=4, samples=3, beta=100.0)
    assert oracle.backward_rows == 6 * (4 + 3 * 3) and ball.contains(x, x_adv).all()


def test_a_fallen_row_leaves_with_its_momentum_and_its_variance():
    net, x = Net(), images()
    y = net(x).argmax(1)
    wrong = torch.where(torch.arange(6) % 2 == 0, y, (y + 1) % 4)
    confirm = {"keep": "best", "watch": lambda rows, candidates: torch.ones(len(rows), dtype=torch.bool)}
    ball, settings = Ball("linf", 1e-3), {"steps": 5, "samples": 2}
    with frozen(net):
        oracle = ask(net, x, wrong, **confirm)
        x_adv = vmi_fgsm(oracle, x, ball, **settings)
        rng = RowRandom(0, "start", torch.arange(6)[::2])
        alone = vmi_fgsm(
            Oracle(net, x[::2], Criterion(y[::2]), rng=rng, keep="best"), x[::2], ball, **settings
        )
    assert torch.allclose(x_adv[::2], alone, atol=1e-6)
    assert oracle.backward_rows == 6 * 3 + 3 * (4 + 3 * 2)  # the fallen rows leave after the first step


@pytest.mark.parametrize("bad", [{"decay": -0.1}, {"samples": 0}, {"beta": float("nan")}])
def test_parameters_outside_their_range_are_refused(bad):
    net, x = Net(), images(1)
    with pytest.raises(ValueError, match=f"{next(iter(bad))} >="):
        vmi_fgsm(ask(net, x, net(x).argmax(1)), x, Ball("linf", 0.1), **bad)
