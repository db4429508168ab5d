"""Image classifiers of transformers: by a stand-in that needs no extra, and by transformers itself."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.errors import CheckpointError, ConfigError, PolicyError, ResourceError, UsageError
from robustcli.models.hf_images import preparation
from robustcli.models.source import load_model
from robustcli.store import weights

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
IMAGES = {
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}
X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.classifier = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, classes)

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values).relu().mean((2, 3))))


class Automatic:
    """What `AutoModelForImageClassification` does with a config and safetensors."""

    @staticmethod
    def from_config(config: Any, *, trust_remote_code: bool) -> nn.Module:
        assert not trust_remote_code
        return Net(config.num_labels)

    @staticmethod
    def from_pretrained(folder: str, *, config: Any, **asked: Any) -> tuple[nn.Module, dict[str, Any]]:
        assert asked["use_safetensors"] and asked["local_files_only"] and not asked["trust_remote_code"]
        net, state = Net(config.num_labels), load_file(f"{folder}/model.safetensors")
        shapes = {key: tensor.shape for key, tensor in net.state_dict().items()}
        fits = {key: tensor for key, tensor in state.items() if tensor.shape == shapes[key]}
        net.load_state_dict(fits, strict=False)
        other = [(key, tensor.shape, shapes[key]) for key, tensor in state.items() if key not in fits]
        return net, {"missing_keys": shapes.keys() - state.keys(), "mismatched_keys": other}


class Config:
    @staticmethod
    def from_pretrained(folder: str, *, trust_remote_code: bool) -> Any:
        stated = json.loads(Path(folder, "config.json").read_text())
        if stated["model_type"] == "evil":
            raise ValueError("requires you to execute the configuration file; set `trust_remote_code=True`")
        return SimpleNamespace(**stated)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    said = SimpleNamespace(set_verbosity_error=lambda: None, disable_progress_bar=lambda: None)
    fake = SimpleNamespace(
        AutoConfig=Config,
        AutoModelForImageClassification=Automatic,
        utils=SimpleNamespace(logging=said),
        __version__="0",
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)


def folder(tmp_path: Path, images: dict[str, Any] | None = IMAGES, **config: Any) -> tuple[Path, Net]:
    torch.manual_seed(0)
    net, home = Net(5).eval(), tmp_path / "vit"
    home.mkdir()
    stated = {"model_type": "tiny", "id2label": {str(k): f"c{k}" for k in range(5)}, **config}
    (home / "config.json").write_text(json.dumps(stated))
    if images is not None:
        (home / "preprocessor_config.json").write_text(json.dumps(images))
    save_file(dict(net.state_dict()), home / "model.safetensors")
    return home, net


def shown(net: Net, x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return net((x - mean) / std).logits


@pytest.mark.usefixtures("stand_in")
def test_classes_normalisation_and_size_come_from_its_files(tmp_path: Path) -> None:
    home, net = folder(tmp_path)
    model = load_model(f"hf:{home}", size=8)
    torch.testing.assert_close(model(X), shown(net, X), rtol=1e-5, atol=1e-6)
    larger = torch.rand(2, 3, 20, 20, requires_grad=True)
    logits = load_model(f"hf:{home}", size=20)(larger)
    small = F.interpolate(larger, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(logits, shown(net, small), rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(logits.sum(), larger)
    assert grad.abs().sum() > 0
    fresh = load_model(f"hf:{home}", num_classes=3, channels=3, size=8)
    assert fresh(X).shape == (3, 3)


@pytest.mark.usefixtures("stand_in")
def test_pixels_as_they_are_without_a_preprocessor(tmp_path: Path) -> None:
    home, net = folder(tmp_path, images=None)
    torch.testing.assert_close(load_model(f"hf:{home}", size=8)(X), net(X).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("stand_in")
def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    home, net = folder(tmp_path)
    state = dict(net.state_dict())
    del state["body.bias"]
    save_file(state, home / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing: body.bias"):
        load_model(f"hf:{home}")
    save_file({**net.state_dict(), "body.bias": torch.rand(9)}, home / "model.safetensors")
    with pytest.raises(CheckpointError, match="of another shape: body.bias"):
        load_model(f"hf:{home}")


@pytest.mark.skipif(weights.torch_version() < weights.SAFE_TORCH, reason="needs torch >= 2.10")
@pytest.mark.usefixtures("stand_in", "converter_in_this_process")
def test_a_pickle_is_read_as_data_and_only_when_asked(tmp_path: Path) -> None:
    home, net = folder(tmp_path)
    (home / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no model.safetensors"):
        load_model(f"hf:{home}")
    torch.save(net.state_dict(), home / "pytorch_model.bin")
    with pytest.raises(PolicyError, match="--allow-pickle-weights"):
        load_model(f"hf:{home}")
    model = load_model(f"hf:{home}", weights=home / "pytorch_model.bin", allow_pickle=True, size=8)
    torch.testing.assert_close(model(X), shown(net, X), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("stand_in")
def test_code_of_a_repository_is_refused(tmp_path: Path) -> None:
    home, _ = folder(tmp_path, model_type="evil", auto_map={"AutoConfig": "evil.C"})
    with pytest.raises(PolicyError, match="never run") as caught:
        load_model(f"hf:{home}")
    assert caught.value.exit_code == 9


@pytest.mark.usefixtures("stand_in")
def test_the_cache_and_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, net = folder(tmp_path)
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **more: Any) -> str:
        asked.append({"name": name, **more})
        if name == "org/gone":
            raise OSError("no route to host")
        return str(home)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    model = load_model("hf:org/vit@abc", size=8)
    torch.testing.assert_close(model(X), shown(net, X), rtol=1e-5, atol=1e-6)
    assert asked[0]["revision"] == "abc" and all(call["local_files_only"] for call in asked)
    assert "*.bin" not in asked[0]["allow_patterns"]
    with pytest.raises(CheckpointError, match="--download") as caught:
        load_model("hf:org/gone")
    assert (caught.value.code, caught.value.exit_code) == ("E-WEIGHTS", 4)
    with pytest.raises(ResourceError, match="no route to host"):
        load_model("hf:org/gone", download=True)
    assert not asked[-1]["local_files_only"]
    with pytest.raises(CheckpointError, match="no such directory"):
        load_model("hf:../gone/x y")


def test_its_extra_is_named_and_a_bare_directory_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = folder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceError, match=r"pip install 'robustcli\[hf\]'"):
        load_model(f"hf:{home}")
    with pytest.raises(UsageError, match=f"--model hf:{home}"):
        load_model(home)


@pytest.mark.parametrize(
    ("stated", "resize", "crop", "mean"),
    [
        ({"size": 8}, (8, 8), None, 0.0),
        ({"size": {"shortest_edge": 9}, "crop_size": 8}, (9, 9), (8, 8), 0.0),
        ({"size": {"height": 8, "width": 6}, "do_resize": False}, None, None, 0.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (256, 256), (224, 224), 0.0),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, (384, 384), None, 0.0),
        ({"image_mean": 0.5, "image_std": 0.25}, None, None, 0.5),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": False}, None, None, 0.5 / 255),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, None, None, 0.0),
    ],
)
def test_what_a_preprocessor_says(stated: dict[str, Any], resize: Any, crop: Any, mean: float) -> None:
    found = preparation(stated, 3, "file")
    assert (found.resize, found.crop) == (resize, crop)
    assert found.mean == pytest.approx((mean,) * 3)


@pytest.mark.parametrize(
    ("stated", "resize", "std", "backwards"),
    [
        ({"image_processor_type": "EfficientNetImageProcessor"}, 9, 0.5 * 0.5, False),
        ({"image_processor_type": "EfficientNetImageProcessor", "include_top": False}, 9, 0.5, False),
        ({"feature_extractor_type": "LevitFeatureExtractor"}, 10, 0.5, False),
        ({"image_processor_type": "PoolFormerImageProcessorFast", "crop_pct": 0.8}, 11, 0.5, False),
        ({"image_processor_type": "PPLCNetImageProcessor", "resize_short": 12}, 12, 0.5, True),
        ({"image_processor_type": "MobileViTImageProcessor"}, 9, 1.0, True),
        ({"do_flip_channel_order": True}, 9, 0.5, True),
    ],
)
def test_processors_that_do_more_than_the_usual(
    stated: dict[str, Any], resize: int, std: float, backwards: bool
) -> None:
    usual = {"size": {"shortest_edge": 9}, "crop_size": 8, "image_mean": [0.25] * 3, "image_std": [0.5] * 3}
    found = preparation({**usual, **stated}, 3, "file")
    assert (found.resize, found.crop, found.std) == ((resize, resize), (8, 8), pytest.approx((std,) * 3))
    assert torch.equal(found.shape(X), X.flip(1) if backwards else X)
    assert found.leaves((8, 8)) is not backwards
    offset = preparation({**usual, "rescale_offset": True, "rescale_factor": 2 / 255}, 3, "file")
    assert offset.mean == pytest.approx((1.25 / 2,) * 3)


def test_a_processor_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="what DonutImageProcessor does"):
        preparation({"size": 8, "image_processor_type": "DonutImageProcessor"}, 3, "file")


@pytest.mark.usefixtures("stand_in")
def test_a_network_of_timm_is_sent_there(tmp_path: Path) -> None:
    home, _ = folder(tmp_path, None, architecture="resnet18", pretrained_cfg={"mean": MEAN})
    with pytest.raises(ConfigError, match="a network of timm") as caught:
        load_model(f"hf:{home}", size=8)
    assert f"timm:resnet18 --weights {home}" in caught.value.hint


@pytest.mark.parametrize(
    "stated",
    [
        {"size": {"longest_edge": 9}},
        {"size": -1},
        {"size": "x"},
        {"crop_size": 9, "size": 8},
        {"do_center_crop": True},
        {"image_mean": ["x"], "image_std": [1]},
        {"rescale_factor": 0},
        {"resample": 77},
        {"size": 9, "size_divisor": 2},
        {"do_normalize": True},
    ],
)
def test_a_preprocessor_that_is_not_understood_is_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not understood"):
        preparation(stated, 3, "file")


def test_transformers_own_network_and_canary(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=5,
        image_size=16, patch_size=8,
    )  # fmt: skip
    net, home, canary = (
        transformers.ViTForImageClassification(config).eval(),
        tmp_path / "vit",
        tmp_path / "ran",
    )
    net.save_pretrained(home)
    stated = json.loads((home / "config.json").read_text())
    code = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}
    (home / "config.json").write_text(json.dumps({**stated, "auto_map": code}))
    (home / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_model(f"hf:{home}", size=16)(x), net(x).logits, rtol=1e-5, atol=1e-5)
    (home / "config.json").write_text(json.dumps({**stated, "auto_map": code, "model_type": "evilnet"}))
    with suppress(PolicyError, CheckpointError):
        load_model(f"hf:{home}", size=16)
        raise AssertionError("a network of unknown code was built")
    assert not canary.exists()
