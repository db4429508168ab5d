"""Every registered model keeps these promises from the day it is registered."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustcli.errors import ConfigError, DataError
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel
from robustcli.registry import models

NAMES = models.names()


def tiny(name: str) -> dict[str, Any]:
    return dict(models.get(name).facts.tiny)


def make(name: str, *, channels: int = 3, size: int = 8, classes: int = 3, seed: int = 0) -> NormalisedModel:
    return build_model(
        name, tiny(name), ModelInfo(classes, channels, size, (0.5,) * channels, (0.25,) * channels), seed=seed
    )


def test_the_registry_holds_ours() -> None:
    assert set(NAMES) >= {"mlp", "preact_resnet18", "resnet18", "small_cnn", "wide_resnet"}


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_formula_and_source(name: str) -> None:
    text = models.get(name).fn.__doc__ or ""
    assert "Source:" in text and "Args:" in text
    assert len(models.get(name).summary) > 20


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_dtype_and_gradient(name: str, size: int, channels: int, classes: int) -> None:
    model = make(name, channels=channels, size=size, classes=classes).eval()
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = model(x)
    assert (
        logits.shape == (2, classes) and logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    )
    (grad,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert bool((grad.flatten(1).abs().sum(1) > 0).all()) and bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    a = make(name, seed=5).state_dict()
    torch.rand(7)
    torch.set_rng_state(before[0])
    b, c = make(name, seed=5).state_dict(), make(name, seed=6).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    assert (
        torch.equal(before[0], torch.get_rng_state())
        and before[1] == random.getstate()
        and (before[2] == np.random.get_state()[1]).all()
    )


@pytest.mark.parametrize("name", NAMES)
def test_weights_do_not_depend_on_the_default_device_or_generator(name: str) -> None:
    a = make(name, seed=5).state_dict()
    torch.manual_seed(99)
    with torch.device("meta"):
        b = make(name, seed=5).state_dict()
    assert all(value.device.type == "cpu" for value in b.values())
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name: str) -> None:
    a, b = make(name, seed=1), make(name, seed=2)
    x = torch.rand(4, 3, 8, 8)
    a.train()(x)  # moves BatchNorm statistics
    b.load_state_dict(a.state_dict(), strict=True)
    assert torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_each_other_in_eval_mode(name: str) -> None:
    model = make(name).eval()
    x = torch.rand(5, 3, 8, 8)
    other = x.clone()
    other[1:] = torch.rand(4, 3, 8, 8)
    assert torch.equal(model(x)[0], model(other)[0])
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(model(x)[order], model(x[order]), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_traces_with_fx_and_folds(name: str) -> None:
    from torch.fx.experimental.optimization import fuse

    model = make(name)
    model.train()(torch.rand(6, 3, 8, 8))
    model.eval()
    x = torch.rand(3, 3, 8, 8)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(x), model(x))
    fused = fuse(model)
    assert torch.allclose(fused(x), model(x), atol=1e-4)
    kept = sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    if name in {"small_cnn", "resnet18", "resnet50"}:  # BN follows its convolution everywhere
        assert kept == 0
    elif name not in {
        "mlp",
        "lenet",
        "conv_small",
        "convnext",
    }:  # pre-activation: the second BN of each block folds, the first cannot
        assert 0 < kept < sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_input_is_not_touched_and_can_be_used_twice(name: str, mode: bool) -> None:
    model = make(name).train(mode)
    x = torch.rand(3, 3, 8, 8).requires_grad_()
    copy = x.detach().clone()
    (model(x).sum() + model(x).sum()).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(x.detach(), copy)
    assert not any(getattr(m, "inplace", False) for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    model = make(name).train()
    model(torch.rand(6, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_channels_are_refused_not_broadcast(name: str) -> None:
    with pytest.raises(DataError, match="takes images 3x.*got 1x8x8"):
        make(name)(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_work_or_are_refused_in_words(name: str) -> None:
    model = make(name).eval()
    if models.get(name).facts.fixed_size:
        with pytest.raises(DataError, match="takes images 3x8x8, got 3x12x12"):
            model(torch.rand(1, 3, 12, 12))
    else:
        for height, width in ((4, 4), (7, 5), (28, 28)):
            assert model(torch.rand(1, 3, height, width)).shape == (1, 3)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameter_names_the_nearest(name: str) -> None:
    known = next(iter(tiny(name)))
    with pytest.raises(ConfigError, match=f"no such parameter of model '{name}'; did you mean '{known}'"):
        build_model(name, {known + "x": 1}, ModelInfo(3, 3, 8, (0.5,) * 3, (0.5,) * 3), seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_meta_build_has_the_same_shapes_and_no_memory(name: str) -> None:
    info = ModelInfo(3, 3, 8, (0.5,) * 3, (0.25,) * 3)
    plan, real = build_model(name, tiny(name), info, seed=0, meta=True), make(name)
    assert {p.device.type for p in plan.parameters()} == {"meta"}
    assert [(k, v.shape, v.dtype) for k, v in plan.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in real.state_dict().items()
    ]
