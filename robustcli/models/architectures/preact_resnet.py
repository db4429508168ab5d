"""Pre-activation ResNet-18."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from robustcli.models.architectures.blocks import (
    Activation,
    Count,
    activation_layer,
    conv3x3,
    kaiming,
    stages,
)
from robustcli.models.info import ModelInfo
from robustcli.registry import models


class PreActBlock(nn.Module):
    """u = a(BN(x)); y = conv(a(BN(conv(u)))) + s, s = x or conv1x1(u), a the activation.

    x [B, inputs, H, W] -> y [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = activation_layer(activation)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = activation_layer(activation)
        self.conv2 = conv3x3(outputs, outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(u))))
        shortcut = self.shortcut(u) if self.projects else x
        return residual + shortcut


class PreActResNet(nn.Module):
    """conv3x3, four stages of pre-activation blocks, a(BN), pooling, linear head; [B, C, H, W] -> [B, K].

    The first block of stages 2, 3 and 4 halves H and W.
    """

    def __init__(
        self, channels: int, width: int, blocks: tuple[int, ...], num_classes: int, activation: Activation
    ) -> None:
        super().__init__()
        self.stem = conv3x3(channels, width)
        widths = [width * 2**stage for stage in range(len(blocks))]
        self.stages = stages(partial(PreActBlock, activation=activation), width, widths, blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = activation_layer(activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.relu(self.bn(self.stages(self.stem(x)))))))
        return logits


@models.register("preact_resnet18", cite="arXiv:1603.05027", tiny={"width": 4})
def preact_resnet18(info: ModelInfo, *, width: Count = 64, activation: Activation = "relu") -> nn.Module:
    """Stages of two blocks x + conv(a(BN(conv(a(BN(x)))))) with (1, 2, 4, 8) * width channels.

    Takes images of any size.

    Args:
        info: classes and channels.
        width: channels of the first stage, 64 as in ResNet-18.
        activation: relu (the paper), silu or gelu.

    10 classes, 3x32x32: 11,172,170 parameters and 0.555 G multiply-adds. A BN follows the last block, as in
    the paper.
    Source: He et al., ECCV 2016, arXiv:1603.05027, figure 1b and section 3.
    """
    return kaiming(PreActResNet(info.inputs, width, (2, 2, 2, 2), info.num_classes, activation))
