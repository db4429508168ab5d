"""`onnx:FILE`: a black box of scores, by onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.api import evaluate
from robustcli.errors import CheckpointError, DataError, ResourceError, UsageError
from robustcli.models.onnx_file import OnnxModel
from robustcli.models.source import load_model

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
X = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 6)


def write(
    path: Path, net: nn.Linear, shape: list[Any], *, kind: str = "FLOAT", output: str = "logits"
) -> Path:
    """x -> flatten -> x W' + b, as ONNX itself writes it."""
    make, number = onnx.helper, getattr(onnx.TensorProto, kind)
    nodes = [
        make.make_node("Flatten", ["x"], ["flat"]),
        make.make_node("Cast", ["flat"], ["wide"], to=onnx.TensorProto.FLOAT),
        make.make_node("Gemm", ["wide", "w", "b"], [output], transB=1),
    ]
    tensors = [
        onnx.numpy_helper.from_array(t.detach().numpy(), n) for n, t in (("w", net.weight), ("b", net.bias))
    ]
    graph = make.make_graph(
        nodes,
        "net",
        [make.make_tensor_value_info("x", number, shape)],
        [make.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [shape[0], 6])],
        tensors,
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["n", 1, 3])
@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE"])
def test_scores_are_those_of_the_network(tmp_path: Path, net: nn.Linear, batch: Any, kind: str) -> None:
    path = write(tmp_path / "net.onnx", net, [batch, 3, 4, 4], kind=kind)
    x = X.half().float() if kind == "FLOAT16" else X
    model = load_model(f"onnx:{path}")
    torch.testing.assert_close(model(x), net(x.flatten(1)).detach(), rtol=1e-5, atol=1e-5)
    assert isinstance(model, OnnxModel) and model.queries == 5 and model.sha256 in repr(model)
    assert isinstance(load_model(path), OnnxModel)


def test_normalisation_and_channels_last(tmp_path: Path, net: nn.Linear) -> None:
    path = write(tmp_path / "net.onnx", net, ["n", 4, 4, 3])
    model = load_model(f"onnx:{path}", normalize="0.1,0.2,0.3,0.5,0.6,0.7")
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    shown = ((X - mean) / std).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(model(X), net(shown).detach(), rtol=1e-5, atol=1e-5)


def test_attacks_on_scores_run_and_gradients_are_refused(tmp_path: Path, net: nn.Linear) -> None:
    model = load_model(f"onnx:{write(tmp_path / 'net.onnx', net, ['n', 3, 4, 4])}")
    y = model(X).argmax(1)
    verdict = evaluate(model, X, y, eps=0.5, norm="linf", attack="square", queries=100)
    assert verdict.clean_acc == 1.0 and verdict.robust_acc < 1.0
    with pytest.raises(UsageError, match="E-BLACK-BOX|does not serve"):
        evaluate(model, X, y, eps=0.5, norm="linf", attack="pgd")
    with pytest.raises(UsageError, match="a gradient was asked"):
        model(X.clone().requires_grad_())


def test_what_is_wrong_is_said(tmp_path: Path, net: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(tmp_path / "net.onnx", net, ["n", 3, 4, 4])
    with pytest.raises(DataError, match="cannot run images 3x9x9.*takes 3x4x4") as shape:
        load_model(f"onnx:{good}")(torch.rand(1, 3, 9, 9))
    assert shape.value.exit_code == 3
    with pytest.raises(CheckpointError, match="no such file"):
        load_model("onnx:gone.onnx")
    with pytest.raises(UsageError, match="holds its weights"):
        load_model(f"onnx:{good}", weights="w.safetensors")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07not onnx")
    with pytest.raises(CheckpointError, match="cannot load it"):
        load_model(f"onnx:{tmp_path / 'bad.onnx'}")
    flat = write(tmp_path / "flat.onnx", net, ["n", 48])
    with pytest.raises(CheckpointError, match=r"it takes x tensor\(float\) nx48, and not one batch"):
        load_model(f"onnx:{flat}")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ResourceError, match=r"pip install 'robustcli\[onnx\]'"):
        load_model(f"onnx:{good}")
