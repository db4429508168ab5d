"""A plain stack of convolutions: the small network for small images and for CPUs."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from robustcli.errors import ConfigError
from robustcli.models.architectures.blocks import (
    Activation,
    Count,
    Stride,
    activation_layer,
    conv3x3,
    kaiming,
)
from robustcli.models.info import ModelInfo
from robustcli.registry import models


class SmallCNN(nn.Module):
    """logits = W mean_hw(block_n(... block_1(x))) + b, block = activation(BN(conv3x3)).

    x [B, C, H, W] -> logits [B, K].
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(pairwise((channels, *widths)), strides, strict=True):
            layers += [
                conv3x3(inputs, outputs, stride),
                nn.BatchNorm2d(outputs),
                activation_layer(activation),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.features(x))))
        return logits


@models.register("small_cnn", cite="arXiv:1409.1556", tiny={"widths": [4, 6], "strides": [1, 2]})
def small_cnn(
    info: ModelInfo,
    *,
    widths: tuple[Count, ...] = (32, 64, 64, 128),
    strides: tuple[Stride, ...] = (),
    activation: Activation = "relu",
) -> nn.Module:
    """conv3x3-BN-activation blocks, global average pooling, one linear layer; any image size.

    Args:
        info: classes and channels.
        widths: output channels of each block, at least one.
        strides: stride of each block, as many as widths. An empty list means: 1 for the first block and
            wherever the width stays, 2 where it changes.
        activation: relu, silu or gelu.

    Cost per image: sum over blocks of 9 * inputs * outputs * H * W multiply-adds at the block's output size.
    Raises ConfigError when widths is empty or strides has another length.
    Source: VGG, Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556;
    BN, Ioffe and Szegedy 2015, arXiv:1502.03167.
    """
    if not widths:
        raise ConfigError("model.widths: at least one block is needed", hint="widths: [32, 64, 64, 128]")
    if not strides:
        strides = (1, *(1 if a == b else 2 for a, b in pairwise(widths)))
    if len(strides) != len(widths):
        raise ConfigError(
            f"model.strides: {len(strides)} strides for {len(widths)} widths",
            hint="give one stride for each width, or none at all",
        )
    return kaiming(SmallCNN(info.inputs, tuple(widths), tuple(strides), info.num_classes, activation))
