"""Layouts of ResNet-18 and ResNet-50: torchvision's names, and those of most code for CIFAR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustcli.models.layouts.normalisations import IMAGENET, MADRY, PIXELS
from robustcli.registry import layouts

_BODY = {"conv1.*": "stem.0.*", "bn1.*": "stem.1.*", "layer{1}.{0}.*": "stages.{0}.{0}.*"}
_KUANGLIU = {**_BODY, "linear.*": "head.*"}
_TORCHVISION = {"layer{1}.{0}.downsample.*": "stages.{0}.{0}.shortcut.*", **_BODY, "fc.*": "head.*"}
_RELU = {"activation": "relu"}
_NOT_18 = ("layer1.2.conv1.weight", "layer1.0.conv3.weight")
_NOT_50 = ("layer3.6.conv1.weight",)


@layouts.register(
    "resnet18",
    arch="resnet18",
    published="ours",
    marks=("stem.1.weight", "stages.0.0.conv1.weight"),
    never=("stages.0.0.conv3.weight",),
)
@layouts.register("resnet50", arch="resnet50", published="ours", marks=("stages.0.0.conv3.weight",))
@layouts.register(
    "resnet18.cifar",
    arch="resnet18",
    published="TRADES, MART, Addepalli 2022, Sehwag 2021, Modas 2021, MadryLab",
    names=_KUANGLIU,
    marks=("bn1.weight", "layer2.0.shortcut.1.weight"),
    never=_NOT_18,
    means=_RELU,
    normalize=PIXELS,
)
@layouts.register(
    "resnet18.torchvision",
    arch="resnet18",
    published="torchvision, Salman 2020",
    names=_TORCHVISION,
    marks=("bn1.weight", "layer2.0.downsample.1.weight"),
    never=_NOT_18,
    means=_RELU,
    normalize=IMAGENET,
)
@layouts.register(
    "resnet50.cifar",
    arch="resnet50",
    published="MadryLab (Engstrom 2019), Augustin 2020",
    names=_KUANGLIU,
    marks=("layer1.0.conv3.weight", "layer2.0.shortcut.1.weight"),
    never=_NOT_50,
    means=_RELU,
    normalize=MADRY,
)
@layouts.register(
    "resnet50.torchvision",
    arch="resnet50",
    published="torchvision, MadryLab (Engstrom 2019), Salman 2020, Wong 2020",
    names=_TORCHVISION,
    marks=("layer1.0.conv3.weight", "layer2.0.downsample.1.weight"),
    never=_NOT_50,
    means=_RELU,
    normalize=IMAGENET,
)
def resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """width = channels of the stem; its kernel says which stem it is.

    Source: the model definitions of RobustBench, https://github.com/RobustBench/robustbench, and torchvision.
    """
    kernel = tensors["stem.0.weight"]
    return {"width": kernel.shape[0], "stem": "imagenet" if kernel.shape[-1] == 7 else "cifar"}
