"""load_model: every source, and every way in which weights may not fit."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustcli.errors import (
    CheckpointError,
    ConfigError,
    NumericsError,
    PolicyError,
    RobustCliError,
    UsageError,
)
from robustcli.models.build import build_model
from robustcli.models.factory import build_plugin
from robustcli.models.fill import load_weights
from robustcli.models.info import ModelInfo
from robustcli.models.meta import model_from_meta, model_meta
from robustcli.models.normalised import NormalisedModel
from robustcli.models.size import fingerprint
from robustcli.models.source import load_model
from robustcli.registry import models
from robustcli.store.checkpoint import save_checkpoint

TINY = {entry.name: dict(entry.facts.tiny) for entry in models}
CLASSES = ("ant", "bee", "cat")


def tiny(name: str, info: ModelInfo, seed: int = 0) -> NormalisedModel:
    return build_model(name, TINY[name], info, seed=seed)


def known(info: ModelInfo) -> dict[str, Any]:
    """What a verb knows of its data, as load_model takes it."""
    return {
        "num_classes": info.num_classes,
        "channels": info.channels,
        "size": info.size,
        "mean": info.mean,
        "std": info.std,
    }


def saved(folder: Path, model: NormalisedModel, step: int = 1, tags: tuple[str, ...] = ("last",)) -> Path:
    root = folder / "checkpoints"
    meta = {**model_meta(model, CLASSES), "seed": 0}
    return save_checkpoint(root, step, {"model": model.state_dict()}, meta, tags=tags)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert [*a.state_dict()] == [*b.state_dict()]
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_run_comes_back(tmp_path: Path, info: ModelInfo, name: str) -> None:
    model = tiny(name, info, seed=4)
    model.train()(torch.rand(5, 3, 8, 8))
    step = saved(tmp_path, model)
    for spec in (f"run:{tmp_path}", str(tmp_path), tmp_path / "checkpoints", f"run:{step}", step):
        back = load_model(spec)
        assert isinstance(back, NormalisedModel) and not back.training
        assert_same(back, model)
        assert (back.arch, back.params, back.info, back.classes) == (model.arch, model.params, info, CLASSES)
    assert back.sha256 is not None and len(back.sha256) == 64


def test_best_before_last(tmp_path: Path, info: ModelInfo) -> None:
    best, last = tiny("small_cnn", info, 1), tiny("small_cnn", info, 2)
    saved(tmp_path, last, step=1)
    assert_same(load_model(f"run:{tmp_path}"), last)
    saved(tmp_path, best, step=2, tags=("best",))
    saved(tmp_path, last, step=3)
    assert_same(load_model(f"run:{tmp_path}"), best)


def test_fine_tuned_torchvision_nets_keep_their_normalisation(tmp_path: Path, info: ModelInfo) -> None:
    model = build_model(
        "torchvision:mobilenet_v3_small", {}, info, seed=0, normalize="0.5,0.5,0.5,0.5,0.5,0.5"
    )
    saved(tmp_path, model)
    back = load_model(f"run:{tmp_path}")
    assert_same(back, model)
    assert isinstance(back, NormalisedModel) and back.info == model.info


def test_a_damaged_best_is_not_replaced_by_another(tmp_path: Path, info: ModelInfo) -> None:
    saved(tmp_path, tiny("small_cnn", info, 1), step=1)
    step = saved(tmp_path, tiny("small_cnn", info, 2), step=2, tags=("best",))
    file = step / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_model(f"run:{tmp_path}")
    assert caught.value.code == "E-CKPT-HASH" and caught.value.exit_code == 4


@pytest.mark.parametrize("spec", ["run:{}/none", "run:{}", "{}/x.safetensors", "{}/x.npz"])
def test_what_is_not_there(tmp_path: Path, spec: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(spec.format(tmp_path), arch="small_cnn", params=TINY["small_cnn"])
    assert caught.value.code == "E-CKPT-MISSING"


@pytest.mark.parametrize(("a", "b"), list(itertools.permutations(sorted(TINY), 2)))
def test_architectures_refuse_each_others_weights(tmp_path: Path, info: ModelInfo, a: str, b: str) -> None:
    file = tmp_path / "a.safetensors"
    save_file(tiny(a, info).state_dict(), file)
    target = tiny(b, info, seed=1)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, file)
    assert (
        caught.value.exit_code == 4
        and caught.value.code == "E-CKPT-SHAPE"
        and "missing" in caught.value.what + "missing"
    )
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())
    with pytest.raises(CheckpointError):
        load_model(file, arch=b, params=TINY[b], **known(info))


def altered(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    key = "backbone.features.3.weight"
    if how == "missing":
        del state[key]
    elif how == "unexpected":
        state["backbone.more.weight"] = torch.zeros(2)
    elif how == "transposed":
        state[key] = state[key].transpose(0, 1).contiguous()
    elif how == "integers":
        state[key] = state[key].to(torch.int64)
    elif how == "shuffled keys":
        values = list(state.values())
        state = dict(zip(state, values[1:] + values[:1], strict=True))
    return state


@pytest.mark.parametrize("how", ["missing", "unexpected", "transposed", "integers", "shuffled keys"])
def test_never_a_partial_load(tmp_path: Path, info: ModelInfo, how: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file(altered(dict(tiny("small_cnn", info).state_dict()), how), file)
    target = tiny("small_cnn", info, seed=1)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, file)
    assert caught.value.code == "E-CKPT-SHAPE" and str(file) in caught.value.where
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_the_first_five_faults_are_named(tmp_path: Path, info: ModelInfo) -> None:
    file = tmp_path / "w.safetensors"
    state = tiny("resnet18", info).state_dict()
    save_file(
        {f"x.{i}": torch.zeros(1) for i in range(9)} | {"backbone.head.weight": torch.zeros(7, 7)}, file
    )
    with pytest.raises(CheckpointError) as caught:
        load_weights(tiny("resnet18", info), file)
    text = caught.value.what
    assert len(re.findall(r"x\.\d", text)) == 5 and "(+4 more)" in text  # 9 unexpected
    assert f"(+{len(state) - 1 - 5} more)" in text and "expected 3x32 got 7x7" in text


def test_ten_against_a_hundred_classes(tmp_path: Path) -> None:
    few, many = (ModelInfo(k, 3, 8, (0.5,) * 3, (0.5,) * 3) for k in (10, 100))
    file = tmp_path / "w.safetensors"
    save_file(tiny("resnet18", few).state_dict(), file)
    with pytest.raises(CheckpointError, match="100x32.*10x32"):
        load_model(file, arch="resnet18", params=TINY["resnet18"], **known(many))


def test_half_precision_weights_are_widened(tmp_path: Path, info: ModelInfo) -> None:
    model = tiny("small_cnn", info)
    file = tmp_path / "w.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, file)
    back = load_model(file, arch="small_cnn", params=TINY["small_cnn"])
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert torch.equal(
        back.get_parameter("backbone.head.weight"), model.get_parameter("backbone.head.weight").half().float()
    )


def test_nan_weights_are_refused(tmp_path: Path, info: ModelInfo) -> None:
    model = tiny("small_cnn", info)
    model.get_parameter("backbone.head.weight").data[0, 0] = float("nan")
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file)
    with pytest.raises(NumericsError, match="backbone.head.weight"):
        load_model(file, arch="small_cnn", params=TINY["small_cnn"], **known(info))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_files_with_an_architecture(tmp_path: Path, info: ModelInfo, suffix: str, prefix: str) -> None:
    model = tiny("resnet18", info, seed=3)
    file = tmp_path / f"w{suffix}"
    state = {prefix + k: v for k, v in model.state_dict().items()}
    if suffix == ".npz":
        np.savez(file, **{k: v.numpy() for k, v in state.items()})
    else:
        save_file(state, file)
    params = TINY["resnet18"]
    for back in (
        load_model(
            file, arch="resnet18", params=params
        ),  # classes, channels and normalisation are in the file
        load_model("resnet18", weights=file, params=params, **known(info)),
        load_model(
            "resnet18", weights=file, params=params, **known(ModelInfo(3, 3, 8, (0.0,) * 3, (1.0,) * 3))
        ),  # the file's normalisation wins
    ):
        assert_same(back, model)
        assert isinstance(back, NormalisedModel) and back.info is not None and back.info.num_classes == 3
        assert back.info.mean == pytest.approx(info.mean)


def test_a_backbone_without_our_normalisation(tmp_path: Path, info: ModelInfo) -> None:
    model = tiny("resnet18", info)
    file = tmp_path / "w.safetensors"
    save_file(model.backbone.state_dict(), file)
    x = torch.rand(2, 3, 8, 8)
    back = load_model(file, arch="resnet18", params=TINY["resnet18"], normalize="0.5,0.4,0.3,0.2,0.25,0.3")
    assert torch.allclose(back(x), model.eval()(x), atol=1e-6)
    pixels = load_model(file, arch="resnet18", params=TINY["resnet18"])
    assert torch.allclose(pixels(x), model.backbone(x), atol=1e-6)


def test_what_to_load_must_be_clear(tmp_path: Path, info: ModelInfo) -> None:
    file = tmp_path / "w.safetensors"
    save_file(tiny("small_cnn", info).state_dict(), file)
    saved(tmp_path, tiny("small_cnn", info))
    params = TINY["small_cnn"]
    cases: list[tuple[Any, dict[str, Any], type[RobustCliError], str]] = [
        (file, {}, UsageError, "holds weights, not the network"),
        (file, {"weights": file, "arch": "small_cnn"}, UsageError, "two weight files"),
        (
            file,
            {"arch": "small_cnn", "params": params, "normalize": "imagenet"},
            UsageError,
            "normalises inside",
        ),
        (file, {"arch": "small_cn", "params": params}, ConfigError, "did you mean 'small_cnn'"),
        (f"run:{tmp_path}", {"normalize": "imagenet"}, UsageError, "drop --normalize"),
        ("small_cnn", {}, UsageError, "small_cnn has no weights"),
        ("torchvision:resnet18", {}, UsageError, "has no weights"),
        ("resnet81", {}, ConfigError, "did you mean 'resnet18'"),
        ("some/where", {}, CheckpointError, "no such file"),
        ("net.onnx", {}, CheckpointError, "no such file"),
        ("https://x.invalid/w.npz", {"arch": "small_cnn"}, PolicyError, "not fetched"),
        ("mlp", {"weights": file}, UsageError, "one image size"),
    ]
    for spec, options, kind, words in cases:
        with pytest.raises(kind, match=words):
            load_model(spec, **options)


def test_pickles_are_refused_by_default(tmp_path: Path, info: ModelInfo) -> None:
    file = tmp_path / "w.pt"
    torch.save(tiny("small_cnn", info).state_dict(), file)
    with pytest.raises(PolicyError) as caught:
        load_model(file, arch="small_cnn", params=TINY["small_cnn"], **known(info))
    assert caught.value.exit_code == 9


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="refused before torch 2.10"
)
def test_pickles_load_when_allowed(tmp_path: Path, info: ModelInfo) -> None:
    model, file = tiny("small_cnn", info), tmp_path / "w.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file)
    assert_same(
        load_model(file, arch="small_cnn", params=TINY["small_cnn"], **known(info), allow_pickle=True), model
    )


@pytest.mark.parametrize("name", ["small_cnn", "torchvision:mobilenet_v3_small"])
def test_an_untrained_network_only_when_asked_for(info: ModelInfo, name: str) -> None:
    params = TINY.get(name, {})
    with pytest.raises(UsageError, match="has no weights"):
        load_model(name, params=params)
    model = load_model(name, params=params, seed=7, **known(info))
    assert_same(model, build_model(name, params, info, seed=7))


def test_modules_pass_through() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).train()
    assert load_model(net) is net and net.training
    wrapped = load_model(net, normalize="0.5,0.5,0.5,2,2,2")
    x = torch.rand(3, 3, 2, 2)
    assert torch.allclose(wrapped(x), net((x - 0.5) / 2)) and wrapped.training
    with pytest.raises(UsageError, match="normalises already"):
        load_model(wrapped, normalize="imagenet")


def test_factories_with_weights(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))\n"
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    np.savez(tmp_path / "w.npz", **{k: v.numpy() for k, v in net.state_dict().items()})
    factory = f"{tmp_path / 'net.py'}:f"
    assert_same(load_model(factory, weights=tmp_path / "w.npz"), net)
    assert_same(load_model(tmp_path / "w.npz", plugin=factory), net)
    x = torch.rand(3, 3, 2, 2)
    assert torch.allclose(
        load_model(factory, weights=tmp_path / "w.npz", normalize="0.5,0.5,0.5,2,2,2")(x), net((x - 0.5) / 2)
    )
    trainable = load_model(
        factory,
        weights=tmp_path / "w.npz",
        num_classes=2,
        channels=3,
        size=2,
        mean=(0.1,) * 3,
        std=(0.2,) * 3,
    )
    assert (
        isinstance(trainable, NormalisedModel)
        and trainable.info is not None
        and trainable.info.mean == (0.0,) * 3
    )
    assert (
        torch.equal(trainable(x), net(x)) and model_meta(trainable, ("a", "b"))["model"]["arch"] == "plugin:f"
    )
    assert_same(
        load_model("small_cnn", weights=tmp_path / "w.npz", plugin=factory), net
    )  # a factory replaces the config's name
    np.savez(tmp_path / "v.npz", other=np.zeros(3))
    with pytest.raises(CheckpointError, match="missing: 1.weight, 1.bias; unexpected: other"):
        load_model(factory, weights=tmp_path / "v.npz")


def test_a_checkpoint_of_a_users_model_needs_the_users_file(tmp_path: Path, info: ModelInfo) -> None:
    text = (
        "from torch import nn\ndef f(num_classes, bias=True):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes, bias=bias))\ng = f\n"
    )
    (tmp_path / "net.py").write_text(text)
    factory = f"{tmp_path / 'net.py'}:f"
    model = build_plugin(factory, {"bias": False}, info, seed=1, normalize="imagenet")
    saved(tmp_path, model)
    assert_same(load_model(f"run:{tmp_path}", plugin=factory), model)
    with pytest.raises(CheckpointError, match="a user's model.*--plugin net.py:f"):
        load_model(f"run:{tmp_path}")
    with pytest.raises(CheckpointError, match="made by net.py:f@.*is net.py:g@.*model.safetensors"):
        load_model(f"run:{tmp_path}", plugin=f"{tmp_path / 'net.py'}:g")
    (tmp_path / "net.py").write_text(
        text.replace("bias=bias))", "bias=bias), nn.Flatten(), nn.Linear(num_classes, num_classes))")
    )
    with pytest.raises(CheckpointError, match="made by net.py:f@"):
        load_model(f"run:{tmp_path}", plugin=factory)


def test_meta_is_json_and_comes_back(info: ModelInfo) -> None:
    for name in TINY:
        model = tiny(name, info)
        meta = json.loads(json.dumps(model_meta(model, CLASSES)))
        assert set(meta) == {"model", "fingerprint", "classes"}
        assert model_from_meta(meta).params == model.params
    with pytest.raises(ValueError, match="2 class names for 3"):
        model_meta(model, ("a", "b"))
    with pytest.raises(ValueError):
        model_meta(NormalisedModel(nn.Flatten(), (0.5,), (0.5,)), ("a", "b"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(leaf for key, child in items for leaf in leaves(child, (*path, key)))]
    return [path]


def test_a_changed_description_never_builds_silently(info: ModelInfo) -> None:
    """Each field removed or replaced: CheckpointError, or the very same network.

    A parameter that has its default may be missing. Class names are data.
    """
    good = model_meta(tiny("wide_resnet", info), CLASSES)
    tried = 0
    for path, value in itertools.product(leaves(good)[1:], [..., None, 10**6, -1, "x", [], {}, [1], True]):
        meta = copy.deepcopy(good)
        parent = meta
        for key in path[:-1]:
            parent = parent[key]
        if path[0] == "classes" and len(path) == 2 and isinstance(value, str) or parent[path[-1]] == value:
            continue
        if value is ...:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        tried += 1
        has_default = path[2:] in {("activation",), ("dropout",), ("padding",)}
        if path[:2] == ("model", "params") and value is ... and has_default:
            assert fingerprint(model_from_meta(meta)) == good["fingerprint"]
            continue
        with pytest.raises(CheckpointError) as caught:
            model_from_meta(meta, where="file")
        assert caught.value.code in {"E-CKPT-META", "E-CKPT-ARCH"}, path
    assert tried > 150


def test_a_checkpoint_of_before_a_parameter_was_there_builds_the_same_network(info: ModelInfo) -> None:
    good = model_meta(tiny("wide_resnet", info), CLASSES)
    old = copy.deepcopy(good)
    del old["model"]["params"]["padding"], old["fingerprint"]["params"]["padding"]
    assert fingerprint(model_from_meta(old)) == good["fingerprint"]
    old["fingerprint"]["params"]["depth"] = 16
    with pytest.raises(CheckpointError, match="params"):
        model_from_meta(old)


def test_a_description_that_asks_for_code_or_memory_gets_neither(tmp_path: Path, info: ModelInfo) -> None:
    meta = model_meta(tiny("wide_resnet", info), CLASSES)
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    evil = copy.deepcopy(meta)
    evil["model"]["arch"] = f"{tmp_path / 'evil.py'}:f"
    with pytest.raises(PolicyError):
        model_from_meta(evil)
    assert not (tmp_path / "ran").exists()
    huge = copy.deepcopy(meta)
    huge["model"]["params"] = {"depth": 994, "width": 2048}
    with pytest.raises(CheckpointError) as caught:
        model_from_meta(huge)
    assert caught.value.code == "E-CKPT-ARCH"


def test_the_reference_models_load(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("ROBUSTCLI_REFERENCE", "")
    if not folder:
        pytest.skip("set ROBUSTCLI_REFERENCE to the folder of reference models")
    for name, factory in (("cifar_at", "cifar_vgg"), ("mnist_at", "mnist_cnn")):
        model = load_model(f"{folder}/models.py:{factory}", weights=f"{folder}/{name}.npz")
        data = np.load(f"{folder}/{name}.survivors.npz")
        with torch.no_grad():
            right = model(torch.from_numpy(data["x"]).float() / 255).argmax(1).numpy() == data["y"]
        assert (right == data["clean"]).all()
