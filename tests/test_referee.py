"""What hands our attacks to AttackBench: each pass reaches the model that it passes, and no copy does."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from robustcli import registry

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("attackbench_adapter")


class Counted(nn.Module):
    """A linear model of two classes that counts rows as AttackBench does: by its forward, and by a hook."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        with torch.no_grad():
            self.inner[1].weight.mul_(scale)
            self.inner[1].bias.copy_(torch.tensor([1.0, 0.0]))
        self.forwards = self.backwards = 0
        self.inner.register_full_backward_hook(self._back)

    def _back(self, module, grad_input, grad_output) -> None:
        self.backwards += len(grad_output[0])

    def forward(self, x):
        self.forwards += len(x)
        return self.inner(x)

    def distance(self, x):
        """The exact linf distance of the boundary; on the way no pixel of a grey image reaches the box."""
        weight = self.inner[1].weight[1] - self.inner[1].weight[0]
        logits = self.inner(x)
        return (logits[:, 0] - logits[:, 1]).detach() / weight.detach().abs().sum()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return 0.5 + 0.02 * torch.rand(3, 3, 2, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "norm", "params"),
    [
        ("fmn", "linf", {"steps": 5}),
        ("fab", "l2", {"steps": 3, "targets": 1}),
        ("cw", "l2", {"steps": 3, "binary_search": 2}),
    ],
)
def test_the_counters_see_every_pass_of_a_minimal_attack(adapter, images, name, norm, params):
    model = Counted(0.1)
    adapter.minimal(name, **params)(model, *images, norm)
    facts = registry.attacks.get(name).facts
    given = {"skip": 0, "restarts": 1, "targeted": True} | params
    assert model.forwards + model.backwards == 3 * (1 + facts.passes(given, 2, norm))  # 1: the clean look
    assert model.backwards > 0


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_an_image_that_stands_costs_the_passes_of_each_round_and_a_copy_of_it_none(adapter, images, loss):
    model = Counted(1e-4)  # no radius of three rounds is enough
    x_adv = adapter.fixed("apgd", rounds=3, steps=4, loss=loss)(model, *images, "linf")
    assert torch.equal(x_adv, images[0])
    assert model.backwards == 3 * 3 * 5
    assert model.forwards == 3 * 3 * (1 + 5 + 1 + 1)  # clean, 4 steps and their start, last point, our look


def test_an_image_leaves_a_round_with_its_first_error(adapter, images, monkeypatch):
    monkeypatch.setitem(adapter.FIRST, "linf", 0.45)
    model = Counted(3.0)
    adapter.fixed("apgd", rounds=1, steps=50)(model, *images, "linf")
    assert 3 <= model.backwards <= 3 * 3


def test_the_smallest_radius_of_a_linear_model_is_found(adapter, images, monkeypatch):
    monkeypatch.setitem(adapter.FIRST, "linf", 0.1)
    model, (x, y) = Counted(3.0), images
    exact = model.distance(x)
    for attack in (adapter.fixed("apgd", rounds=10, steps=5), adapter.minimal("fmn", steps=60)):
        x_adv = attack(model, x, y, "linf")
        found = (x_adv - x).flatten(1).abs().amax(1)
        assert (model(x_adv).argmax(1) != y).all()
        assert (found >= exact * 0.999).all() and (found <= exact * 1.01).all()


def test_images_that_are_wrong_already_are_given_back(adapter, images):
    model, (x, y) = Counted(3.0), images
    x_adv = adapter.fixed("pgd", rounds=2)(model, x, 1 - y, "linf")
    assert torch.equal(x_adv, x) and not model.backwards


def test_a_black_or_white_pixel_keeps_its_gradient_under_the_counters(monkeypatch):
    reason = "benchmarks/referee.py says how AttackBench is installed"
    attackbench = pytest.importorskip("attackbench", reason=reason)
    pytest.importorskip("adv_lib", reason=reason)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    referee = importlib.import_module("referee")
    model = Counted(1.0)
    x, y = torch.zeros(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64)
    x[1] = 1.0
    images = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 2)
    attack = importlib.import_module("attackbench_adapter").minimal("fmn", steps=10)
    found = referee.measured(model, images, attack, "linf")
    assert attackbench.__version__ and found["num_backwards"] == [10, 10]
    alone = attack(model, x, y, "linf")
    size = (alone - x).flatten(1).abs().amax(1)
    assert found["distances"]["linf"] == pytest.approx(size.tolist(), rel=1e-6)
