"""A model that clamps its input is attacked as well as the same model without the clamp."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustcli
from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.edge import hides_bounds, opened
from robustcli.core.geometry import Ball
from robustcli.evaluation.patching import PatchFit
from robustcli.training.free import Free
from robustcli.training.settings import StepSettings


class Clamped(nn.Module):
    """z(edge(x))."""

    def __init__(self, net, edge=lambda x: x.clamp(0, 1)):
        super().__init__()
        self.net, self.edge = net, edge

    def forward(self, x):
        return self.net(self.edge(x))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 4)).eval()


@pytest.fixture
def digits():
    """Images of black, white and a few grey pixels, as those of MNIST are: [32, 1, 8, 8]."""
    draws = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return (2 * draws - 0.5).clamp(0, 1)


EDGES = {
    "clamp": lambda x: x.clamp(0, 1),
    "below": lambda x: x.clamp(min=0),
    "relu": torch.relu,
    "hardtanh": lambda x: nn.functional.hardtanh(x, 0.0, 1.0),
    "normalised": lambda x: (x.clip(0, 1) - 0.5) / 0.25,
}


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_a_slope_hidden_at_the_bounds_is_found_and_taken_beside_them(net, digits, edge):
    clamped = Clamped(net, edge)
    if not hides_bounds(clamped, digits):  # of torch before 2.15, whose clamp has a slope at its bounds
        pytest.skip("this torch has a slope at the bounds")
    assert not hides_bounds(opened(clamped), digits)
    x = digits.clone().requires_grad_(True)
    opened(clamped)(x).sum().backward()
    assert (x.grad != 0).float().mean() > 0.99
    assert torch.allclose(opened(clamped)(digits), clamped(digits), atol=1e-4)


@pytest.mark.parametrize(
    "edge",
    [lambda x: x, lambda x: 0 * x, lambda x: x.clamp(-1, 2), lambda x: (255 * x).round() / 255],
    ids=["plain", "constant", "wide", "rounding"],
)
def test_other_models_hide_nothing_there(net, digits, edge):
    assert not hides_bounds(Clamped(net, edge), digits)
    assert not hides_bounds(net, digits[:0])


def test_a_look_draws_nothing(net, digits):
    noisy = Clamped(net, lambda x: (x + torch.randn_like(x)).clamp(0, 1))
    before = torch.get_rng_state()
    hides_bounds(noisy, digits)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("attack", "norm", "eps"), [("pgd", "linf", 0.05), ("fmn", "l2", 0.3), ("pgd", "l1", 1.5)]
)
def test_a_clamp_costs_no_success(net, digits, norm, eps, attack):
    with torch.no_grad():
        y = net(digits).argmax(1)
    plain = robustcli.evaluate(net, digits, y, eps=eps, norm=norm, attack=attack)
    clamped = robustcli.evaluate(Clamped(net), digits, y, eps=eps, norm=norm, attack=attack)
    assert plain.robust_acc < 0.9
    assert abs(clamped.robust_acc - plain.robust_acc) <= 1 / 32


@pytest.mark.parametrize("attack", ["pgd", "mi_fgsm"])
def test_the_points_of_attack_are_those_without_the_clamp(net, digits, attack):
    with torch.no_grad():
        y = net(digits).argmax(1)
    plain, clamped = (
        robustcli.attack(model, digits, y, name=attack, eps=0.05, search="fp32")
        for model in (net, Clamped(net))
    )
    assert ((plain - clamped).abs() > 1e-3).float().mean() < 0.01


def test_a_network_that_says_nothing_yet_is_looked_at_again(net, digits):
    clamped, last = Clamped(net), net[-1]
    kept, y = last.weight.detach().clone(), torch.zeros(len(digits), dtype=torch.int64)
    with torch.no_grad():
        last.weight.zero_()
    assert hides_bounds(clamped, digits) is None
    robustcli.attack(clamped, digits, y, eps=0.05, search="fp32")
    with torch.no_grad():
        last.weight.copy_(kept)
    x_adv, plain = (
        robustcli.attack(one, digits, y, eps=0.05, name="fgsm", search="fp32") for one in (clamped, net)
    )
    assert torch.equal(x_adv, plain)


def test_a_patch_is_fitted_as_without_the_clamp(net, digits):
    job = PatchFit(0.2, 0.0, 1.0, 8, 32, 0.3, 0.0, 1.0, 0.0, None, 0)
    y, ids = torch.zeros(len(digits), dtype=torch.int64), torch.arange(len(digits))
    plain, clamped = (
        job.run(model, digits, y, ids, lambda share: None) for model in (net, Clamped(net).eval())
    )
    assert ((plain == 0) | (plain == 1)).any()
    assert (plain - clamped).abs().mean() < 0.01


def test_a_free_step_moves_black_and_white_pixels(net, digits):
    clamped = Clamped(net)
    if not hides_bounds(clamped, digits):  # of torch before 2.15
        pytest.skip("this torch has a slope at the bounds")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    madry = registry.objectives.get("madry").fn
    settings = StepSettings(clamped, madry, "ce", pgd, Ball("linf", 0.1), optimizer)
    step = Free(settings, replays=1)
    step(digits, torch.zeros(len(digits), dtype=torch.int64), torch.arange(len(digits)), seed=0, epoch=0)
    assert (step.state()["delta"] != 0).float().mean() > 0.5
