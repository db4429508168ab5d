"""Pre-activation ResNet-18, in the variants that are published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from robustcli.models.architectures.blocks import (
    Activation,
    Count,
    Padding,
    activation_layer,
    conv3x3,
    kaiming,
    padded3x3,
    stages,
)
from robustcli.models.info import ModelInfo
from robustcli.registry import models

Shortcut = Literal["activated", "input", "input3x3"]


@dataclass(frozen=True)
class Variant:
    """What published networks of this name differ in; see `preact_resnet18`."""

    activation: Activation
    shortcut: Shortcut
    padding: Padding
    last_norm: bool


class PreActBlock(nn.Module):
    """u = a(BN(x)); y = conv(a(BN(conv(u)))) + s, s = x or conv1x1(u), a the activation.

    x [B, inputs, H, W] -> y [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, variant: Variant) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = activation_layer(variant.activation)
        self.pad, self.conv1 = padded3x3(inputs, outputs, stride, variant.padding)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = activation_layer(variant.activation)
        self.conv2 = conv3x3(outputs, outputs)
        self.projects = stride != 1 or inputs != outputs
        self.activated = variant.shortcut == "activated"
        self.shortcut_pad: nn.Module = nn.Identity()
        if self.projects and variant.shortcut == "input3x3":
            self.shortcut_pad, self.shortcut = padded3x3(inputs, outputs, stride, variant.padding)
        elif self.projects:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(self.pad(u)))))
        if not self.projects:
            return residual + x
        projected: Tensor = self.shortcut(self.shortcut_pad(u if self.activated else x))
        return residual + projected


class PreActResNet(nn.Module):
    """conv3x3, four stages of pre-activation blocks, a(BN), pooling, linear head; [B, C, H, W] -> [B, K].

    The first block of stages 2, 3 and 4 halves H and W.
    """

    def __init__(
        self, channels: int, width: int, blocks: tuple[int, ...], num_classes: int, variant: Variant
    ) -> None:
        super().__init__()
        self.stem = conv3x3(channels, width)
        widths = [width * 2**stage for stage in range(len(blocks))]
        self.stages = stages(partial(PreActBlock, variant=variant), width, widths, blocks)
        self.bn: nn.Module = nn.Identity()
        self.relu: nn.Module = nn.Identity()
        if variant.last_norm:
            self.bn = nn.BatchNorm2d(widths[-1])
            self.relu = activation_layer(variant.activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.relu(self.bn(self.stages(self.stem(x)))))))
        return logits


@models.register("preact_resnet18", cite="arXiv:1603.05027", tiny={"width": 4})
def preact_resnet18(
    info: ModelInfo,
    *,
    width: Count = 64,
    activation: Activation = "relu",
    shortcut: Shortcut = "activated",
    padding: Padding = "centre",
    last_norm: bool = True,
) -> nn.Module:
    """Stages of two blocks x + conv(a(BN(conv(a(BN(x)))))) with (1, 2, 4, 8) * width channels.

    Takes images of any size.

    Args:
        info: classes and channels.
        width: channels of the first stage, 64 as in ResNet-18.
        activation: relu (the paper), silu or gelu.
        shortcut: what a shortcut of another size projects: `activated`, a(BN(x)) (the paper); `input`, x
            (Wong et al. 2020, arXiv:2001.03994); `input3x3`, x by a 3x3 convolution (Rebuffi et al. 2021,
            arXiv:2103.01946).
        padding: centre (the paper), or same: where the stride is 2, a pixel right and below (Rebuffi et al.).
        last_norm: whether a(BN) follows the last block, as in the paper; Wong et al. leave it out.

    10 classes, 3x32x32: 11,172,170 parameters and 0.555 G multiply-adds.
    Source: He et al., ECCV 2016, arXiv:1603.05027, figure 1b and section 3.
    """
    variant = Variant(activation, shortcut, padding, last_norm)
    return kaiming(PreActResNet(info.inputs, width, (2, 2, 2, 2), info.num_classes, variant))
