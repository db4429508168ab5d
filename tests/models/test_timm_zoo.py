"""timm through a stand-in module, so that the test needs no extra; the refusal when timm is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.errors import CheckpointError, ConfigError, ResourceError
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.models.source import load_model

INFO = ModelInfo(4, 3, 8, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))


class StandIn(nn.Module):
    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.default_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        self.fc = nn.Linear(in_chans * 64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def create_model(name: str, **kw: Any) -> nn.Module:
        seen.append({"name": name, **kw})
        return StandIn(kw["num_classes"], kw["in_chans"])

    fake = SimpleNamespace(
        is_model=lambda n: n == "tiny_net",
        list_models=lambda: ["tiny_net"],
        create_model=create_model,
        get_pretrained_cfg=lambda n: SimpleNamespace(
            num_classes=9, hf_hub_id="timm/tiny_net", url="https://x/tiny-1234.pth", fixed_input_size=False
        ),
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    nothing = SimpleNamespace(try_to_load_from_cache=lambda name, file: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", nothing)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")
    return seen


def test_missing_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ResourceError, match=r"pip install 'robustcli\[timm\]'") as caught:
        build_model("timm:resnet18", {}, INFO, seed=0)
    assert caught.value.exit_code == 6


def test_built_with_its_own_normalisation(calls: list[dict[str, Any]]) -> None:
    model = build_model("timm:tiny_net", {}, INFO, seed=0)
    assert model.info is not None and model.info.mean == (0.5, 0.5, 0.5) and model.arch == "timm:tiny_net"
    assert calls == [{"name": "tiny_net", "pretrained": False, "num_classes": 4, "in_chans": 3}]
    grey = build_model("timm:tiny_net", {}, ModelInfo(4, 1, 8, (0.3,), (0.3,)), seed=0)
    assert grey.info is not None and grey.info.mean == (0.3,) and calls[-1]["in_chans"] == 1


def test_names_weights_and_download(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="no model 'tiny_nett'; did you mean 'tiny_net'"):
        build_model("timm:tiny_nett", {}, INFO, seed=0)
    with pytest.raises(ConfigError, match="no weights 'V1'"):
        build_model("timm:tiny_net@V1", {}, INFO, seed=0)
    with pytest.raises(CheckpointError, match="--download"):
        build_model("timm:tiny_net@pretrained", {}, INFO, seed=0)
    build_model("timm:tiny_net@pretrained", {}, INFO, seed=0, download=True)
    assert calls[-1]["pretrained"] is True
    load_model("timm:tiny_net@pretrained", size=8, download=True)
    assert calls[-1]["num_classes"] == 9


def test_weights_in_a_cache_need_no_network(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_torch = tmp_path / "checkpoints" / "tiny-1234.pth"
    in_torch.parent.mkdir()
    in_torch.write_bytes(b"x")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    load_model("timm:tiny_net@pretrained", size=8)
    assert calls[-1]["pretrained_cfg_overlay"] == {"file": str(in_torch)} and calls[-1]["pretrained"]
    in_hub = tmp_path / "model.safetensors"
    in_hub.write_bytes(b"x")
    asked: list[tuple[str, str]] = []

    def found(name: str, file: str) -> str:
        asked.append((name, file))
        return str(in_hub)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(try_to_load_from_cache=found))
    load_model("timm:tiny_net@pretrained", size=8)
    assert calls[-1]["pretrained_cfg_overlay"] == {"file": str(in_hub)}
    assert asked == [("timm/tiny_net", "model.safetensors")]


def test_no_network_is_said(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **kw: Any) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["timm"], "create_model", fail)
    with pytest.raises(ResourceError, match="no route to host") as caught:
        load_model("timm:tiny_net@pretrained", size=8, download=True)
    assert caught.value.code == "E-NET"


def test_a_network_of_one_size_is_built_for_that_of_the_data(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = SimpleNamespace(num_classes=9, fixed_input_size=True)
    monkeypatch.setattr(sys.modules["timm"], "get_pretrained_cfg", lambda name: cfg)
    build_model("timm:tiny_net", {}, INFO, seed=0)
    assert calls[-1]["img_size"] == 8
