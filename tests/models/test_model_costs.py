"""Parameters and FLOPs against published numbers, and forward passes against independent code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.errors import ConfigError
from robustcli.models.build import build_model
from robustcli.models.flops import flops
from robustcli.models.info import ModelInfo
from robustcli.models.size import count_parameters

CIFAR = ModelInfo(10, 3, 32, (0.5,) * 3, (0.25,) * 3)
IMAGENET = ModelInfo(1000, 3, 224, (0.5,) * 3, (0.25,) * 3)

# (parameters, 1e9 multiply-adds). resnet18 with the ImageNet stem, resnet50 and convnext: torchvision's own
# table. xcit: timm's network. WRN: 2.7 M and 36.5 M in Zagoruyko and Komodakis, table 1, to the last digit by
# hand below. The other exact counts and the GMAC follow from the papers' layer shapes.
PUBLISHED = [
    ("resnet18", {}, CIFAR, 11_173_962, 0.555),
    ("resnet18", {"stem": "imagenet"}, IMAGENET, 11_689_512, 1.814),
    ("resnet50", {"stem": "imagenet"}, IMAGENET, 25_557_032, 4.089),
    ("xcit", {}, IMAGENET, 26_253_304, 4.796),
    ("convnext", {}, IMAGENET, 28_589_128, 4.4555),
    ("preact_resnet18", {}, CIFAR, 11_172_170, 0.555),
    ("wide_resnet", {"depth": 16, "width": 4}, CIFAR, 2_748_890, 0.393),
    ("wide_resnet", {"depth": 28, "width": 10}, CIFAR, 36_479_194, 5.243),
    ("wide_resnet", {"depth": 34, "width": 10}, CIFAR, 46_160_474, 6.659),
    ("wide_resnet", {"depth": 70, "width": 16}, CIFAR, 266_796_506, 38.76),
]


@pytest.mark.parametrize(("name", "params", "info", "count", "gmac"), PUBLISHED)
def test_published_parameters_and_flops(
    name: str, params: dict[str, Any], info: ModelInfo, count: int, gmac: float
) -> None:
    model = build_model(name, params, info, seed=0, meta=True)
    assert count_parameters(model) == count
    assert flops(model, info.shape) / 2e9 == pytest.approx(gmac, abs=0.006 if gmac > 10 else 0.0006)


def wide_resnet_by_hand(depth: int, k: int, classes: int = 10, size: int = 32) -> tuple[int, int]:
    """(parameters, multiply-adds) from the paper's table, written without our code."""
    parameters, macs, inputs, side = 27 * 16, 27 * 16 * size**2, 16, size
    for group in range(3):
        outputs = 16 * k * 2**group
        for block in range((depth - 4) // 6):
            side = side // 2 if group and not block else side
            weights = 9 * inputs * outputs + 9 * outputs**2 + (inputs * outputs if inputs != outputs else 0)
            parameters += weights + 2 * inputs + 2 * outputs
            macs += weights * side**2
            inputs = outputs
    return parameters + 2 * inputs + (inputs + 1) * classes, macs + inputs * classes


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 4), (22, 2), (28, 10), (34, 10)])
def test_wide_resnet_matches_the_table_by_hand(depth: int, width: int) -> None:
    model = build_model("wide_resnet", {"depth": depth, "width": width}, CIFAR, seed=0, meta=True)
    # with k = 1 the first group keeps 16 channels and needs no projection, as in the hand count
    assert (count_parameters(model), flops(model, CIFAR.shape) // 2) == wide_resnet_by_hand(depth, width)


def test_small_cnn_by_hand() -> None:
    widths, strides = [48, 48, 96, 96, 192, 192, 192], [1, 1, 2, 1, 2, 1, 2]
    model = build_model("small_cnn", {"widths": widths, "strides": strides}, CIFAR, seed=0, meta=True)
    side, inputs, parameters, macs = 32, 3, 0, 0
    for width, stride in zip(widths, strides, strict=True):
        side //= stride
        parameters += 9 * inputs * width + 2 * width
        macs += 9 * inputs * width * side**2
        inputs = width
    assert count_parameters(model) == parameters + 193 * 10 == 979_546
    assert flops(model, CIFAR.shape) == 2 * (macs + 1920)
    assert flops(model, CIFAR.shape) / 1e9 == pytest.approx(0.18, abs=0.005)


def test_small_cnn_default_strides_halve_where_the_width_changes() -> None:
    assert [
        m.stride[0] for m in build_model("small_cnn", {}, CIFAR, seed=0).modules() if isinstance(m, nn.Conv2d)
    ] == [1, 2, 1, 2]


def test_mlp_by_hand() -> None:
    model = build_model("mlp", {"hidden": [7, 5]}, ModelInfo(3, 1, 8, (0.5,), (0.5,)), seed=0)
    assert count_parameters(model) == 65 * 7 + 8 * 5 + 6 * 3
    assert flops(model, (1, 8, 8)) == 2 * (64 * 7 + 7 * 5 + 5 * 3)
    assert (
        count_parameters(build_model("mlp", {"hidden": []}, ModelInfo(3, 1, 8, (0.5,), (0.5,)), seed=0))
        == 65 * 3
    )


def test_flops_do_not_change_the_model_and_count_attention() -> None:
    model = build_model("resnet18", {"width": 4}, CIFAR, seed=0).train()
    model.backbone.stages.eval()  # type: ignore[union-attr]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flops(model, (3, 8, 8))
    assert model.training and not model.backbone.stages.training  # type: ignore[union-attr]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    products = 5 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16) + 2 * (
        5 * 5 * 8
    )  # projections and feed-forward, then q k and a v
    assert flops(attention, (5, 8)) == 2 * products


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


LSTM = 15 * 2 * (24 * (8 + 6) + 24 * (12 + 6))  # steps, directions; two layers of [W_ih, W_hh]
ATTENTION = 2 * 5 * 7 * (4 + 3)  # heads, queries, keys; q k and a v


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = x.new_ones(1, 2, 5, 4), x.new_ones(1, 2, 7, 4), x.new_ones(1, 2, 7, 3)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=x.new_ones(5, 7).bool())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("model", "shape", "products"),
    [
        (Recurrent(), (15, 8), LSTM),
        (Attention(), (1,), ATTENTION),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 25 * 4 * 3 * 9),
    ],
    ids=["lstm", "attention", "transposed"],
)
def test_flops_whatever_kernel_torch_chooses(
    model: nn.Module, shape: tuple[int, ...], products: int, device: str
) -> None:
    assert flops(model.to_empty(device=device), shape) == 2 * products


@pytest.mark.parametrize(("training", "activation"), [(True, "relu"), (False, "relu"), (False, "silu")])
def test_resnet18_equals_torchvisions_with_the_same_weights(training: bool, activation: str) -> None:
    import torchvision

    params = {"stem": "imagenet", "activation": activation}
    ours = build_model("resnet18", params, ModelInfo(5, 3, 64, (0.0,) * 3, (1.0,) * 3), seed=0)
    theirs = torchvision.models.resnet18(num_classes=5)
    if activation == "silu":
        for module in theirs.modules():
            if hasattr(module, "relu"):
                module.relu = nn.SiLU()
    mine = [v for k, v in ours.state_dict().items() if k.startswith("backbone.")]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), mine, strict=True)))
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.train(training)(x), theirs.train(training)(x), atol=1e-4, rtol=1e-4)


def wide_by_hand(
    x: Tensor, s: dict[str, Tensor], prefix: str, groups: list[list[tuple[str, int]]], act: Any
) -> Tensor:
    """Forward pass of a pre-activation network straight from the papers' figure: eval mode, a state dict."""

    def bn(u: Tensor, name: str) -> Tensor:
        return F.batch_norm(
            u, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"]
        )

    x = F.conv2d(x, s["stem.weight"], padding=1)
    for group in groups:
        for name, stride in group:
            u = act(bn(x, f"{name}.bn1"))
            y = F.conv2d(
                act(bn(F.conv2d(u, s[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn2")),
                s[f"{name}.conv2.weight"],
                padding=1,
            )
            x = y + (
                F.conv2d(u, s[f"{name}.shortcut.weight"], stride=stride)
                if f"{name}.shortcut.weight" in s
                else x
            )
    return act(bn(x, "bn")).mean((2, 3)) @ s["head.weight"].T + s["head.bias"]


@pytest.mark.parametrize(
    ("name", "params", "blocks", "folder", "act"),
    [
        ("preact_resnet18", {"width": 4}, (2, 2, 2, 2), "stages", F.relu),
        ("preact_resnet18", {"width": 4, "activation": "silu"}, (2, 2, 2, 2), "stages", F.silu),
        ("preact_resnet18", {"width": 4, "activation": "gelu"}, (2, 2, 2, 2), "stages", F.gelu),
        ("wide_resnet", {"depth": 16, "width": 2}, (2, 2, 2), "groups", F.relu),
        ("wide_resnet", {"depth": 10, "width": 1, "activation": "silu"}, (1, 1, 1), "groups", F.silu),
    ],
)
def test_preactivation_nets_equal_the_papers_formula(
    name: str, params: dict[str, Any], blocks: tuple[int, ...], folder: str, act: Any
) -> None:
    model = build_model(name, params, ModelInfo(4, 3, 16, (0.0,) * 3, (1.0,) * 3), seed=0)
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model.train()(x)  # statistics that are not 0 and 1
    groups = [
        [(f"{folder}.{g}.{b}", 2 if g and not b else 1) for b in range(count)]
        for g, count in enumerate(blocks)
    ]
    by_hand = wide_by_hand(x, model.backbone.state_dict(), "", groups, act)
    assert torch.allclose(model.eval()(x), by_hand, atol=1e-5, rtol=1e-4)


def test_kaiming_scale() -> None:
    model = build_model("wide_resnet", {"depth": 10, "width": 4}, CIFAR, seed=0)
    conv = model.backbone.groups[2][0].conv1  # type: ignore[index,union-attr]
    assert conv.weight.shape[:2] == (256, 128)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)  # fan-out
    hidden = build_model(
        "mlp", {"hidden": [600]}, ModelInfo(10, 1, 16, (0.5,), (0.5,)), seed=0
    ).backbone.body[1]  # type: ignore[index,union-attr]
    assert hidden.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)  # fan-in
    head = model.backbone.head  # type: ignore[union-attr]
    assert head.weight.std().item() == pytest.approx((1 / 256) ** 0.5, rel=0.05)
    assert bool((head.bias == 0).all())


def test_dropout_works_in_training_only() -> None:
    model = build_model("wide_resnet", {"depth": 10, "width": 1, "dropout": 0.5}, CIFAR, seed=0)
    x = torch.rand(4, 3, 8, 8)
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 3
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_conv_small_by_hand() -> None:
    """Conv(16, 4, 2), Conv(32, 4, 2), FC(100) of papers on certified training; CNN7 by its parameters."""
    mnist = ModelInfo(10, 1, 28, (0.0,), (1.0,))
    small = build_model("conv_small", {}, mnist, seed=0, meta=True)
    assert count_parameters(small) == 17 * 16 + 257 * 32 + 1569 * 100 + 1010 == 166_406
    assert flops(small, mnist.shape) == 2 * (16 * 16 * 196 + 256 * 32 * 49 + 156_800 + 1000)
    cnn7 = {"widths": [64, 64, 128, 128, 128], "strides": [1, 1, 2, 1, 1], "kernel": 3, "hidden": [512]}
    seven = build_model("conv_small", {**cnn7, "batch_norm": True}, CIFAR, seed=0, meta=True)
    convolutions = 9 * (3 * 64 + 64 * 64 + 64 * 128 + 2 * 128 * 128)
    hidden = 128 * 256 * 512
    assert count_parameters(seven) == convolutions + 2 * (64 * 2 + 128 * 3 + 512) + hidden + 5130
    with pytest.raises(ConfigError, match="used up"):
        build_model("conv_small", {"widths": [4] * 5, "strides": [2] * 5}, mnist, seed=0)
    with pytest.raises(ConfigError, match="1 strides for 2 widths"):
        build_model("conv_small", {"strides": [2]}, mnist, seed=0)
