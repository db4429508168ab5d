"""ResNet-18 with the CIFAR stem or the ImageNet stem."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from robustcli.models.architectures.blocks import (
    Activation,
    Count,
    Stem,
    activation_layer,
    conv3x3,
    kaiming,
    stages,
)
from robustcli.models.info import ModelInfo
from robustcli.registry import models


class BasicBlock(nn.Module):
    """y = a(BN(conv(a(BN(conv(x))))) + s(x)), s the identity or BN(conv1x1), a the activation.

    x [B, inputs, H, W] -> y [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = activation_layer(activation)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:  # option B of the paper
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Stem of `width` channels, `body` (stages of residual blocks), pooling, head; [B, C, H, W] -> [B, K].

    features: channels that `body` returns.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        body: nn.Module,
        features: int,
        num_classes: int,
        stem: Stem,
        activation: Activation,
    ) -> None:
        super().__init__()
        if stem == "cifar":
            self.stem = nn.Sequential(
                conv3x3(channels, width), nn.BatchNorm2d(width), activation_layer(activation)
            )
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(channels, width, 7, 2, 3, bias=False),
                nn.BatchNorm2d(width),
                activation_layer(activation),
                nn.MaxPool2d(3, 2, 1),
            )
        self.stages = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.stages(self.stem(x)))))
        return logits


@models.register("resnet18", cite="arXiv:1512.03385", tiny={"width": 4})
def resnet18(
    info: ModelInfo, *, stem: Stem = "cifar", width: Count = 64, activation: Activation = "relu"
) -> nn.Module:
    """Stages of two basic blocks a(F(x) + s(x)) with width, 2, 4 and 8 * width channels; any image size.

    Args:
        info: classes and channels.
        stem: cifar is a 3x3 convolution of stride 1, for images of 8 to 64 pixels; imagenet is a 7x7
            convolution of stride 2 and a 3x3 max pooling.
        width: channels of the first stage, 64 in the paper.
        activation: a, relu (the paper), silu or gelu.

    cifar stem, 10 classes, 3x32x32: 11,173,962 parameters and 0.555 G multiply-adds.
    imagenet stem, 1000 classes, 3x224x224: 11,689,512 parameters and 1.814 G multiply-adds.
    Source: He et al., CVPR 2016, arXiv:1512.03385, table 1 and section 4.2.
    """
    widths = [width * 2**stage for stage in range(4)]
    body = stages(partial(BasicBlock, activation=activation), width, widths, (2, 2, 2, 2))
    return kaiming(ResNet(info.inputs, width, body, widths[-1], info.num_classes, stem, activation))
