"""Published layouts of weights: a file made in each gives the logits of the published network, to 1e-5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import published_transformers as transformers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli.errors import CheckpointError, PolicyError, UsageError
from robustcli.models.layouts.names import Names
from robustcli.models.normalised import NormalisedModel
from robustcli.models.source import load_model
from robustcli.registry import layouts, models
from robustcli.store import weights

C10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
C100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
MADRY = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
AROUND = ("normalize.mean", "std", "model")
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def around(net: nn.Module, numbers: Any) -> nn.Module:
    return published.Normalised(net, AROUND, *numbers)


# name -> (model, published network, how its file is made of it, normaliser that is nowhere in the file,
#          parameters that must be read)
CASES: dict[str, tuple[str, Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "wide_resnet.trades": (
        "wide_resnet",
        lambda: published.TradesWRN(16, 2, 10, True),
        None,
        {"depth": 16, "width": 2},
    ),
    "wide_resnet.deepmind": (
        "wide_resnet",
        lambda: published.DeepMindWRN(16, 1, 10, *C10),
        None,
        {"depth": 16, "activation": "silu"},
    ),
    "wide_resnet.deepmind, 100 classes": (
        "wide_resnet",
        lambda: published.DeepMindWRN(10, 2, 100, *C100),
        None,
        {"width": 2, "padding": "same"},
    ),
    "preact_resnet18.rice": (
        "preact_resnet18",
        lambda: published.PreActNet(4, 10, True),
        C10,
        {"width": 4, "shortcut": "activated"},
    ),
    "preact_resnet18.wong": (
        "preact_resnet18",
        lambda: published.PreActNet(4, 10, False),
        C10,
        {"shortcut": "input", "last_norm": False},
    ),
    "preact_resnet18.deepmind": (
        "preact_resnet18",
        lambda: published.DeepMindPreActNet(4, 10, *C10),
        None,
        {"shortcut": "input3x3"},
    ),
    "resnet18.cifar": ("resnet18", lambda: published.ResNet(4, 10, False, True), None, {"stem": "cifar"}),
    "resnet18.torchvision": (
        "resnet18",
        lambda: published.ResNet(4, 7, False, False),
        IMAGENET,
        {"stem": "imagenet", "width": 4},
    ),
    "resnet50.cifar": ("resnet50", lambda: published.ResNet(4, 10, True, True), MADRY, {"stem": "cifar"}),
    "resnet50.torchvision": (
        "resnet50",
        lambda: published.ResNet(4, 7, True, False),
        IMAGENET,
        {"stem": "imagenet"},
    ),
}


def told() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


def load(path: Path, arch: str, **more: Any) -> NormalisedModel:
    model = load_model(path, arch=arch, **{"say": lambda text: None, **more})
    assert isinstance(model, NormalisedModel)
    return model


def saved(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "published.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


CIFAR_STRIDES, IMAGENET_STRIDES = (1, 1, 2, 2), (2, 2, 2, 2)
Logits = Callable[[dict[str, Tensor], Tensor], Tensor]


def xcit(strides: tuple[int, ...]) -> Logits:
    return lambda state, x: transformers.xcit_logits(state, x, 2, strides)


def convnext(stem: str) -> Logits:
    return lambda state, x: transformers.convnext_logits(state, x, (1, 2, 1), stem)


# layout -> (tensors, the published logits of normalised images, normaliser, parameters that must be read)
FUNCTIONS: dict[str, tuple[dict[str, Tensor], Logits, Any, dict[str, Any]]] = {
    "xcit": (transformers.xcit_state(16, 2, 2, 10), xcit(CIFAR_STRIDES), C10, {"patch": 4, "depth": 2}),
    "xcit, 1000 classes": (
        transformers.xcit_state(16, 1, 2, 1000),
        xcit(IMAGENET_STRIDES),
        IMAGENET,
        {"patch": 16, "heads": 2},
    ),
    "convnext": (
        transformers.convnext_state((8, 16, 8), (1, 2, 1), 7, "patch"),
        convnext("patch"),
        IMAGENET,
        {"dims": (8, 16, 8), "depths": (1, 2, 1)},
    ),
    "convnext.convstem": (
        transformers.convnext_state((8, 16, 8), (1, 2, 1), 7, "convstem"),
        convnext("convstem"),
        None,
        {"stem": "convstem"},
    ),
    "convnext.convstem, ConvNeXt-B": (
        transformers.convnext_state((8, 16, 8), (1, 2, 1), 7, "convstem3"),
        convnext("convstem3"),
        None,
        {"stem": "convstem3"},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_are_those_of_the_published_function(tmp_path: Path, name: str) -> None:
    state, logits, normaliser, params = FUNCTIONS[name]
    arch = layouts.get(name.partition(",")[0]).facts.arch
    model = load(saved(tmp_path, under("model.", state)), arch)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in normaliser or ((0.0,) * 3, (1.0,) * 3))
    torch.testing.assert_close(model(X), logits(state, (X - mean) / std), rtol=1e-5, atol=1e-5)
    assert params.items() <= model.params.items()
    *_, gone = state
    rest = {key: tensor for key, tensor in state.items() if key != gone}
    with pytest.raises(CheckpointError, match=f"missing: {gone}"):
        load(saved(tmp_path, rest), arch)


def test_every_layout_has_a_case() -> None:
    names = {name.partition(",")[0] for name in [*CASES, *FUNCTIONS]}
    assert names == {entry.name for entry in layouts if entry.facts.published != "ours"}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_published_network(tmp_path: Path, name: str) -> None:
    arch, make, outside, params = CASES[name]
    net = published.drawn(make())
    shown = around(net, outside).eval() if outside else net
    lines, say = told()
    model = load(saved(tmp_path, under("module.", net.state_dict())), arch, say=say)
    torch.testing.assert_close(model(X), shown(X), rtol=1e-5, atol=1e-5)
    assert params.items() <= model.params.items()
    facts = layouts.get(name.partition(",")[0]).facts
    assert facts.published in lines[0] and all(f"model.{key}=" in lines[0] for key in facts.means)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("mu", "sigma", "model"), "model."),
        (AROUND, "module."),
        (("normalizer.new_mean", "new_std", "model"), "module."),
        (("normalize.mean", "std", "net"), "state_dict_ema."),
    ],
)
@pytest.mark.parametrize("case", ["wide_resnet.trades", "preact_resnet18.rice", "resnet50.torchvision"])
def test_a_normaliser_in_the_file_is_taken(
    tmp_path: Path, case: str, names: tuple[str, str, str], prefix: str
) -> None:
    arch, make, _, _ = CASES[case]
    net = published.Normalised(published.drawn(make()), names, *OTHER).eval()
    model = load(saved(tmp_path, under(prefix, net.state_dict())), arch)
    torch.testing.assert_close(model(X), net(X), rtol=1e-5, atol=1e-5)


def test_what_the_caller_says_goes_before_what_is_usual(tmp_path: Path) -> None:
    net = published.drawn(published.TradesWRN(10, 1, 10, False))
    path = saved(tmp_path, net.state_dict())
    model = load(path, "wide_resnet", normalize="0.1,0.2,0.3,0.5,0.6,0.7", params={"activation": "silu"})
    assert model.params["activation"] == "silu" and model.mean.flatten().tolist() == pytest.approx(OTHER[0])
    with pytest.raises(CheckpointError, match="those of depth 10, and model.depth is 16") as caught:
        load(path, "wide_resnet", params={"depth": 16})
    assert caught.value.exit_code == 4


def test_an_average_beside_raw_weights(tmp_path: Path) -> None:
    raw, ema = (published.drawn(published.TradesWRN(10, 1, 10, False), seed) for seed in (0, 1))
    state = under("model.", raw.state_dict()) | under("ema_model.module.", ema.state_dict())
    path = saved(tmp_path, state)
    assert torch.allclose(load(path, "wide_resnet")(X), ema(X), atol=1e-5)
    assert torch.allclose(load(path, "wide_resnet", weights_kind="raw")(X), raw(X), atol=1e-5)


@pytest.mark.parametrize(
    ("case", "gone"),
    [
        ("wide_resnet.trades", "block2.layer.0.convShortcut.weight"),
        ("wide_resnet.trades", "fc.weight"),
        ("wide_resnet.deepmind", "layer.1.block.1.batchnorm_1.bias"),
        ("preact_resnet18.rice", "layer4.1.conv2.weight"),
        ("preact_resnet18.wong", "linear.bias"),
        ("preact_resnet18.deepmind", "layer_3.0.shortcut.weight"),
        ("resnet18.cifar", "linear.bias"),
        ("resnet18.torchvision", "layer3.0.downsample.0.weight"),
        ("resnet50.cifar", "layer1.0.conv2.weight"),
        ("resnet50.torchvision", "conv1.weight"),
    ],
)
def test_what_is_missing_is_named_as_the_file_names_it(tmp_path: Path, case: str, gone: str) -> None:
    arch, make, _, _ = CASES[case]
    state = dict(make().state_dict())
    del state[gone]
    with pytest.raises(CheckpointError, match=f"missing: {gone}") as caught:
        load(saved(tmp_path, state), arch)
    assert caught.value.exit_code == 4


def test_weights_of_another_network_name_it(tmp_path: Path) -> None:
    path = saved(tmp_path, under("model.", published.PreActNet(4, 10, True).state_dict()))
    with pytest.raises(
        CheckpointError, match=r"those of preact_resnet18 \(Rice 2020.*not of wide_resnet"
    ) as caught:
        load(path, "wide_resnet")
    assert "--model preact_resnet18" in caught.value.hint
    with pytest.raises(UsageError, match="its names are those of preact_resnet18"):
        load_model(path)
    with pytest.raises(CheckpointError, match="--model preact_resnet18"):
        load(path, "small_cnn", num_classes=10)


def test_a_head_of_another_name_is_shown(tmp_path: Path) -> None:
    state = published.TradesWRN(10, 1, 10, False).state_dict()
    renamed = {name.replace("fc.", "classifier."): tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="missing: fc.weight.*classifier.bias, classifier.weight"):
        load(saved(tmp_path, renamed), "wide_resnet")


def test_an_unknown_layout_says_what_it_holds_and_what_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path, {"trunk.0.weight": torch.rand(3, 3), "trunk.0.bias": torch.rand(3)})
    with pytest.raises(CheckpointError) as caught:
        load(path, "wide_resnet")
    text = str(caught.value)
    for words in (
        "it holds trunk.0.bias, trunk.0.weight",
        "DeepMind",
        "layer.0.block.0.conv_0.weight",
        "--plugin FILE.py:factory",
    ):
        assert words in text


def test_our_own_names_say_depth_and_width(tmp_path: Path) -> None:
    ours = load_model("wide_resnet", params={"depth": 16, "width": 2}, num_classes=5, channels=3, size=32)
    path = saved(tmp_path, dict(ours.state_dict()))
    model = load(path, "wide_resnet")
    assert (model.params["depth"], model.params["width"]) == (16, 2)
    assert torch.equal(model(X), ours(X))


class Canary:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.skipif(weights.torch_version() < weights.SAFE_TORCH, reason="foreign files need torch >= 2.10")
def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    state, canary = published.TradesWRN(10, 1, 10, False).state_dict(), tmp_path / "canary"
    path = tmp_path / "published.pt"
    torch.save({"state_dict": state, "extra": Canary(canary)}, path)
    with pytest.raises(PolicyError, match="--allow-pickle-weights"):
        load(path, "wide_resnet")
    with pytest.raises(PolicyError, match="names code"):
        load(path, "wide_resnet", allow_pickle=True)
    assert not canary.exists()


@pytest.mark.parametrize("entry", list(layouts), ids=lambda entry: entry.name)
def test_names_go_both_ways(entry: Any) -> None:
    names = Names(entry.facts.names)
    assert entry.facts.arch in models
    for mark in entry.facts.marks:
        ours = names.ours(mark)
        assert ours is not None and names.theirs(ours) == mark
