"""ResNet-50 with the CIFAR stem or the ImageNet stem."""

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
from robustcli.models.architectures.resnet import ResNet
from robustcli.models.info import ModelInfo
from robustcli.registry import models

EXPANSION = 4


class Bottleneck(nn.Module):
    """y = a(BN(conv1x1(a(BN(conv3x3(a(BN(conv1x1(x)))))))) + s(x)), s the identity or BN(conv1x1).

    x [B, inputs, H, W] -> y [B, outputs, H / stride, W / stride]; the 3x3 convolution has outputs / 4
    channels and the stride.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        width = outputs // EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation_layer(activation)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation_layer(activation)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.act3 = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        out: Tensor = self.act3(self.bn3(self.conv3(y)) + self.shortcut(x))
        return out


@models.register("resnet50", cite="arXiv:1512.03385", tiny={"width": 4})
def resnet50(
    info: ModelInfo, *, stem: Stem = "cifar", width: Count = 64, activation: Activation = "relu"
) -> nn.Module:
    """Stages of 3, 4, 6 and 3 bottlenecks a(F(x) + s(x)) with 4, 8, 16 and 32 * width channels; any size.

    Args:
        info: classes and channels.
        stem: cifar is a 3x3 convolution of stride 1, for images of 8 to 64 pixels; imagenet is a 7x7
            convolution of stride 2 and a 3x3 max pooling.
        width: channels after the stem, 64 in the paper.
        activation: a, relu (the paper), silu or gelu.

    The stride is that of the 3x3 convolution, as in torchvision and in MadryLab's robustness.
    imagenet stem, 1000 classes, 3x224x224: 25,557,032 parameters and 4.089 G multiply-adds.
    Source: He et al., CVPR 2016, arXiv:1512.03385, table 1 and figure 5.
    """
    widths = [EXPANSION * width * 2**stage for stage in range(4)]
    body = stages(partial(Bottleneck, activation=activation), width, widths, (3, 4, 6, 3))
    return kaiming(ResNet(info.inputs, width, body, widths[-1], info.num_classes, stem, activation))
