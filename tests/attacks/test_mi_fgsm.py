"""MI-FGSM against its formula written as a plain loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli.attacks.mi_fgsm import mi_fgsm
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 36, 4)

    def forward(self, x):
        return 3 * self.head(torch.sin(4 * self.conv(x - 0.5)).flatten(1))


def setup(rows=6):
    net, x = Net(), torch.rand(rows, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(1)


def ask(net, x, y, **more):
    return Oracle(net, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(len(x))), **more)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_each_point_follows_the_formula(norm, decay):
    net, x, y = setup()
    ball, steps = Ball(norm, 0.2), 8
    with frozen(net):
        found = mi_fgsm(ask(net, x, y), x, ball, steps=steps, decay=decay)
        for row in range(len(x)):
            z, g = x[row : row + 1], torch.zeros_like(x[:1])
            for _ in range(steps):
                point = z.clone().requires_grad_(True)
                (grad,) = torch.autograd.grad(F.cross_entropy(net(point), y[row : row + 1]), point)
                g = decay * g + grad / grad.abs().sum()  # the paper's l1 norm; ours is the mean
                z = ball.project(
                    x[row : row + 1], z + 0.2 / steps * (g.sign() if norm == "linf" else g / g.norm())
                )
            assert torch.allclose(found[row], z[0], atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_momentum_it_is_pgd_from_the_clean_point_and_with_it_is_not(norm):
    net, x, y = setup()
    eps = 3.0 if norm == "l1" else 0.3
    ball = Ball(norm, eps)
    with frozen(net):
        plain = pgd(ask(net, x, y), x, ball, steps=8, step_size=eps / 8, start="zero")
        assert torch.allclose(mi_fgsm(ask(net, x, y), x, ball, steps=8, decay=0.0), plain, atol=1e-6)
        assert not torch.allclose(mi_fgsm(ask(net, x, y), x, ball, steps=8), plain, atol=1e-3)


def test_the_default_step_reaches_the_border_and_no_further():
    net, x, y = setup()
    x = 0.4 + 0.2 * x
    x_adv = mi_fgsm(ask(net, x, y), x, Ball("linf", 0.1), steps=1)
    assert (x_adv - x).abs().flatten(1).amax(1).tolist() == pytest.approx([0.1] * len(x), abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_gradients_count_and_vanished_ones_keep_the_row(norm):
    """A row whose gradient is 1e-20 has a direction; one without any stays, and neither turns NaN."""

    class Faint(nn.Module):
        def forward(self, x):
            pull = (x * 1e-20 * torch.tensor([1.0, 0.0])[:, None, None, None]).flatten(1).sum(1)
            return torch.stack((torch.zeros_like(pull), pull), 1)

    x, y = torch.full((2, 1, 3, 3), 0.5), torch.zeros(2, dtype=torch.int64)
    x_adv = mi_fgsm(ask(Faint(), x, y), x, Ball(norm, 0.3), steps=4)
    assert torch.allclose(x_adv[0], torch.full((1, 3, 3), 0.8 if norm == "linf" else 0.6)) and torch.equal(
        x_adv[1], x[1]
    )


def test_the_scale_of_the_gradient_does_not_matter():
    net, x, y = setup()
    with frozen(net):
        found = [
            mi_fgsm(ask(lambda z, c=c: c * net(z), x, y), x, Ball("l2", 1.0), steps=8) for c in (1e-5, 1e-18)
        ]
    assert torch.allclose(*found, atol=1e-4)


def test_a_fallen_row_leaves_with_its_momentum():
    net, x, y = setup()
    wrong = torch.where(torch.arange(6) % 2 == 0, y, (y + 1) % 4)
    confirm = {"keep": "best", "watch": lambda rows, candidates: torch.ones(len(rows), dtype=torch.bool)}
    oracle = ask(net, x, wrong, **confirm)
    with frozen(net):
        x_adv = mi_fgsm(oracle, x, Ball("linf", 1e-3), steps=10)
        alone = mi_fgsm(ask(net, x[::2], y[::2], keep="best"), x[::2], Ball("linf", 1e-3), steps=10)
    assert oracle.backward_rows == 6 + 3 * 9 and torch.allclose(x_adv[::2], alone, atol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, float("nan")])
def test_a_negative_decay_is_refused(decay):
    net, x, y = setup(1)
    with pytest.raises(ValueError, match=f"decay must be >= 0, got {decay}"):
        mi_fgsm(ask(net, x, y), x, Ball("linf", 0.1), decay=decay)
