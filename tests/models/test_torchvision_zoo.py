"""torchvision's classifiers: names, normalisation, heads, weights from a cache; nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from robustcli.errors import CheckpointError, ConfigError, DataError, ResourceError
from robustcli.models.build import build_model
from robustcli.models.flops import flops
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel
from robustcli.models.size import count_parameters
from robustcli.models.source import load_model
from robustcli.models.torchvision_zoo import replace_head

INFO = ModelInfo(4, 3, 32, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_without_weights(name: str) -> None:
    before = torch.get_rng_state()
    model = build_model(f"torchvision:{name}", {}, INFO, seed=1)
    same = build_model(f"torchvision:{name}", {}, INFO, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True)
    )
    assert model.info is not None and (model.info.mean, model.info.std) == IMAGENET
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 4) and model.arch == f"torchvision:{name}"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "swin_t", "vit_b_16"])
def test_cost_equals_what_torchvision_publishes(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    model = build_model(f"torchvision:{name}", {}, ModelInfo(1000, 3, 224, *IMAGENET), seed=0, meta=True)
    assert count_parameters(model) == weights.meta["num_params"]
    assert flops(model, (3, 224, 224)) / 2e9 == pytest.approx(weights.meta["_ops"], abs=0.0006)


def test_grey_images_are_shown_as_rgb() -> None:
    grey = ModelInfo(4, 1, 32, (0.5,), (0.5,))
    model = build_model("torchvision:mobilenet_v3_small", {}, grey, seed=0).eval()
    x = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    assert torch.equal(model(x), model.backbone((x.expand(-1, 3, -1, -1) - mean) / std))


def test_transformers_are_built_for_the_datas_size() -> None:
    model = build_model("torchvision:vit_b_32", {}, replace(INFO, size=64), seed=0, meta=True)
    assert model.backbone.image_size == 64 and model.fixed_size
    with pytest.raises(DataError, match="takes images 3x64x64, got 3x32x32"):
        model(torch.rand(1, 3, 32, 32, device="meta"))
    with pytest.raises(ConfigError, match="cannot be built"):
        build_model("torchvision:vit_b_16", {}, replace(INFO, size=30), seed=0, meta=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet19", "no classifier 'resnet19'; did you mean 'resnet1"),
        ("fcn_resnet50", "not an image classifier"),
        ("quantized_resnet18", "not an image classifier"),
        ("", "unknown model|no classifier"),
        ("resnet18@IMAGENET1K_V9", "no weights 'IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'"),
    ],
)
def test_typos_name_the_nearest(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(f"torchvision:{name}", {}, INFO, seed=0)


def test_no_parameters_and_sizes_that_fit() -> None:
    with pytest.raises(ConfigError, match="take no parameters"):
        build_model("torchvision:resnet18", {"width": 3}, INFO, seed=0)
    with pytest.raises(ConfigError, match="torchvision:squeezenet1_1 cannot take 3 images of 3x4x4"):
        build_model("torchvision:squeezenet1_1", {}, replace(INFO, size=4), seed=0)


def test_every_weights_file_has_its_hash_in_its_name() -> None:
    zoo = torchvision.models
    urls = [weights.url for name in zoo.list_models(module=zoo) for weights in zoo.get_model_weights(name)]
    assert len(urls) > 100 and all(re.search(r"-[0-9a-f]{8,}\.pth$", url) for url in urls)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, torch.nn.Module]:
    """(the weights entry, the network) of a small network in torch's cache, as if it had been downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = torchvision.models.squeezenet1_1()
    weights = torchvision.models.get_model_weights("squeezenet1_1").IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    place(tmp_path, monkeypatch, weights, net.state_dict())
    return weights, net


def place(folder: Path, monkeypatch: pytest.MonkeyPatch, weights: Any, content: Any) -> Path:
    path = folder / "checkpoints" / "tmp.pth"
    torch.save(content, path)
    name = f"squeezenet1_1-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(weights.value, "url", f"https://invalid.invalid/{name}")
    return path.rename(path.with_name(name))


def test_cached_weights_load_with_their_normalisation(cached: tuple[Any, torch.nn.Module]) -> None:
    model = load_model("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert isinstance(model, NormalisedModel) and model.info is not None
    assert (
        (model.info.mean, model.info.std) == IMAGENET
        and model.info.num_classes == 1000
        and not model.training
    )
    x = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    assert torch.equal(model(x), cached[1].eval()((x - mean) / std))
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_head_is_replaced_for_other_classes(cached: tuple[Any, torch.nn.Module]) -> None:
    model = build_model("torchvision:squeezenet1_1@DEFAULT", {}, INFO, seed=0)
    head = "classifier.1."
    body = {k: v for k, v in cached[1].state_dict().items() if not k.startswith(head)}
    assert all(torch.equal(model.backbone.state_dict()[k], v) for k, v in body.items())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4) and model.arch == "torchvision:squeezenet1_1"
    tuned = load_model(
        "torchvision:squeezenet1_1@IMAGENET1K_V1", num_classes=7
    )  # to fine-tune; without num_classes it keeps its 1000
    assert tuned(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_b_16", "swin_t", "densenet121", "squeezenet1_0", "mnasnet0_5", "maxvit_t", "vgg11"],
)
def test_heads_of_all_families(name: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
        replace_head(net, 1000, 7)
        assert net.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 7)
        with pytest.raises(ConfigError, match="no layer with 1000 outputs"):
            replace_head(net, 1000, 5)


def test_a_plan_of_a_builder_that_computes() -> None:
    model = build_model("torchvision:regnet_y_400mf", {}, INFO, seed=0, meta=True)
    assert {p.device.type for p in model.parameters()} == {"meta"} and model.eval()(
        torch.rand(1, 3, 32, 32, device="meta")
    ).shape == (1, 4)


def test_nothing_is_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    calls = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(CheckpointError, match="--download") as caught:
        load_model("torchvision:resnet18@IMAGENET1K_V1")
    assert caught.value.exit_code == 4 and not calls and not (tmp_path / "cache").exists()
    with pytest.raises(ResourceError, match="no network"):
        load_model("torchvision:resnet18@IMAGENET1K_V1", download=True)
    assert calls[0][0].endswith("resnet18-f37072fd.pth") and calls[0][2] == "f37072fd"
    assert (
        build_model("torchvision:resnet18@IMAGENET1K_V1", {}, INFO, seed=0, meta=True).info is not None
    )  # a plan needs no weights


def test_a_changed_cache_is_refused(cached: tuple[Any, torch.nn.Module], tmp_path: Path) -> None:
    path = next((tmp_path / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="another hash"):
        load_model("torchvision:squeezenet1_1@IMAGENET1K_V1")


class Evil:
    """Pickles into a call."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.canary,))


def test_code_in_cached_weights_does_not_run(
    cached: tuple[Any, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path, monkeypatch, cached[0], {"classifier.1.bias": Evil(str(tmp_path / "ran"))})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert not (tmp_path / "ran").exists()


def test_other_weights_are_refused(
    cached: tuple[Any, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path, monkeypatch, cached[0], torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model("torchvision:squeezenet1_1@IMAGENET1K_V1")


def test_inception_renormalises_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's transform_input maps ImageNet's normalisation to (0.5, 0.5).

    That is the same as normalising by 0.5 at once.
    """
    zoo = torchvision.models
    net = zoo.googlenet(aux_logits=False, init_weights=False, transform_input=True).eval()
    monkeypatch.setattr("robustcli.models.torchvision_zoo.fetch", lambda weights, download: None)
    real = zoo.get_model
    monkeypatch.setattr(
        zoo,
        "get_model",
        lambda name, weights=None, **kw: net if weights is not None else real(name, weights=None, **kw),
    )
    x = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    expected = net((x - mean) / std)
    model = load_model("torchvision:googlenet@IMAGENET1K_V1")
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_a_broken_torchvision_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def broken(name: str, *args: Any) -> Any:
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ResourceError, match="nms does not exist; install") as caught:
        build_model("torchvision:resnet18", {}, INFO, seed=0)
    assert caught.value.code == "E-EXTRA"
