"""The activation of a network is a parameter: in every layer, in what is saved, and in its bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from robustcli.core.bounds import margins, trace
from robustcli.core.geometry import Ball
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.models.meta import model_from_meta, model_meta
from robustcli.models.normalised import NormalisedModel
from robustcli.models.source import load_model
from robustcli.registry import models, parameters
from robustcli.store.checkpoint import save_checkpoint

KINDS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
CLASSES = ("ant", "bee", "cat")
NAMES = [name for name in models.names() if "activation" in parameters(models.get(name).fn)]


def made(name: str, activation: str) -> NormalisedModel:
    params = {**models.get(name).facts.tiny, "activation": activation}
    return build_model(name, params, ModelInfo(3, 3, 8, (0.5,) * 3, (0.25,) * 3), seed=0)


def count(model: nn.Module, kind: str) -> int:
    return sum(isinstance(module, KINDS[kind]) for module in model.modules())


def test_all_of_ours_have_it_but_those_whose_papers_fix_another() -> None:
    assert set(models.names()) - set(NAMES) == {"convnext", "xcit"}


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_in_every_layer_and_in_what_is_saved(name: str, activation: str, tmp_path: Path) -> None:
    model, plain = made(name, activation), made(name, "relu")
    assert count(model, activation) == count(plain, "relu") > 0 == count(model, "relu")
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    root, groups = tmp_path / "checkpoints", {"model": model.state_dict()}
    save_checkpoint(root, 1, groups, model_meta(model, CLASSES))
    x = torch.rand(2, 3, 8, 8)
    opened = load_model(f"run:{tmp_path}")
    assert torch.equal(opened.eval()(x), model.eval()(x))
    assert not torch.equal(model(x), plain.eval()(x))


def test_a_checkpoint_from_before_the_parameter_is_one_of_relu() -> None:
    meta = model_meta(made("resnet18", "relu"), CLASSES)
    meta["model"]["params"].pop("activation")
    assert count(model_from_meta(meta), "relu") == count(made("resnet18", "relu"), "relu")


@pytest.mark.parametrize(("name", "activation"), [("resnet18", "gelu"), ("preact_resnet18", "silu")])
def test_its_bounds_hold(name: str, activation: str) -> None:
    model, y = made(name, activation), torch.tensor([0])
    model.train()(torch.rand(8, 3, 4, 4))
    x, eps = torch.rand(1, 3, 4, 4), 1e-3
    low = margins(trace(model.eval(), (3, 4, 4)), x, y, Ball("linf", eps), method="crown")
    assert (low > -3).all(), "no bound to speak of"
    for _ in range(20):
        z = model((x + eps * (torch.rand_like(x) - 0.5).sign()).clamp(0, 1))
        assert ((z[:, :1] - z)[:, 1:] >= low[:, 1:]).all()
