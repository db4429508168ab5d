"""Layouts of pre-activation ResNet-18."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustcli.models.layouts.normalisations import CIFAR
from robustcli.registry import layouts

_KUANGLIU = {
    "conv1.*": "stem.*",
    "layer{1}.{0}.shortcut.0.*": "stages.{0}.{0}.shortcut.*",
    "layer{1}.{0}.*": "stages.{0}.{0}.*",
    "bn.*": "bn.*",
    "linear.*": "head.*",
}
_DEEPMIND = {
    "conv_2d.*": "stem.*",
    "layer_{0}.{0}.batchnorm_0.*": "stages.{0}.{0}.bn1.*",
    "layer_{0}.{0}.conv_2d_1.*": "stages.{0}.{0}.conv1.*",
    "layer_{0}.{0}.batchnorm_1.*": "stages.{0}.{0}.bn2.*",
    "layer_{0}.{0}.conv_2d_2.*": "stages.{0}.{0}.conv2.*",
    "layer_{0}.{0}.shortcut.*": "stages.{0}.{0}.shortcut.*",
    "batchnorm.*": "bn.*",
    "logits.*": "head.*",
}
_NEVER = ("bn1.weight", "layer2.0.shortcut.1.weight", "layer1.2.conv1.weight")


@layouts.register(
    "preact_resnet18",
    arch="preact_resnet18",
    published="ours",
    marks=("stem.weight", "stages.0.0.bn1.weight"),
)
@layouts.register(
    "preact_resnet18.rice",
    arch="preact_resnet18",
    published="Rice 2020, AWP, Kireev 2021, Addepalli 2021",
    names=_KUANGLIU,
    marks=("layer2.0.shortcut.0.weight", "bn.weight"),
    never=_NEVER,
    means={"activation": "relu", "shortcut": "activated"},
    normalize=CIFAR,
)
@layouts.register(
    "preact_resnet18.wong",
    arch="preact_resnet18",
    published="Wong 2020, Andriushchenko 2020",
    names=_KUANGLIU,
    marks=("layer1.0.bn1.weight", "layer2.0.shortcut.0.weight"),
    never=(*_NEVER, "bn.weight"),
    means={"activation": "relu", "shortcut": "input", "last_norm": False},
    normalize=CIFAR,
)
@layouts.register(
    "preact_resnet18.deepmind",
    arch="preact_resnet18",
    published="DeepMind: Rebuffi 2021; Rade 2021",
    names=_DEEPMIND,
    marks=("layer_0.0.conv_2d_1.weight",),
    never=("layer_0.2.conv_2d_1.weight",),
    means={"activation": "silu", "padding": "same", "shortcut": "input3x3"},
    normalize=CIFAR,
)
def preact_resnet18(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """width = channels of the stem.

    Source: the model definitions of RobustBench, https://github.com/RobustBench/robustbench.
    """
    return {"width": tensors["stem.weight"].shape[0]}
