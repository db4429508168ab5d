"""Layouts of wide residual networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustcli.models.layouts.normalisations import CIFAR, PIXELS
from robustcli.registry import layouts

_TRADES = {
    "conv1.*": "stem.*",
    "block{1}.layer.{0}.convShortcut.*": "groups.{0}.{0}.shortcut.*",
    "block{1}.layer.{0}.*": "groups.{0}.{0}.*",
    "bn1.*": "bn.*",
    "fc.*": "head.*",
}
_DEEPMIND = {
    "init_conv.*": "stem.*",
    "layer.{0}.block.{0}.batchnorm_0.*": "groups.{0}.{0}.bn1.*",
    "layer.{0}.block.{0}.conv_0.*": "groups.{0}.{0}.conv1.*",
    "layer.{0}.block.{0}.batchnorm_1.*": "groups.{0}.{0}.bn2.*",
    "layer.{0}.block.{0}.conv_1.*": "groups.{0}.{0}.conv2.*",
    "layer.{0}.block.{0}.shortcut.*": "groups.{0}.{0}.shortcut.*",
    "batchnorm.*": "bn.*",
    "logits.*": "head.*",
}


@layouts.register("wide_resnet", arch="wide_resnet", published="ours", marks=("groups.0.0.conv1.weight",))
@layouts.register(
    "wide_resnet.trades",
    arch="wide_resnet",
    published="TRADES, MART, AWP, Carmon 2019, Sehwag 2021, LBGAT, LTD",
    names=_TRADES,
    marks=("block1.layer.0.conv1.weight",),
    unused=("sub_block1.",),
    means={"activation": "relu"},
    normalize=PIXELS,
)
@layouts.register(
    "wide_resnet.deepmind",
    arch="wide_resnet",
    published="DeepMind: Gowal 2020, Rebuffi 2021; Pang 2022, Wang 2023, Bartoldson 2024",
    names=_DEEPMIND,
    marks=("layer.0.block.0.conv_0.weight",),
    means={"activation": "silu", "padding": "same"},
    normalize=CIFAR,
)
def wide_resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """depth = 6 * blocks of the first group + 4, width = channels of the first group / 16.

    Source: the model definitions of RobustBench, https://github.com/RobustBench/robustbench.
    """
    blocks = sum(f"groups.0.{k}.conv1.weight" in tensors for k in range(1000))
    return {"depth": 6 * blocks + 4, "width": max(1, tensors["groups.0.0.conv1.weight"].shape[0] // 16)}
