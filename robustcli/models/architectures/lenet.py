"""Convolutions and hidden layers without BatchNorm: the network that robust training on digits uses."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from robustcli.models.architectures.blocks import Activation, Count, activation_layer, kaiming
from robustcli.models.info import ModelInfo
from robustcli.registry import models


class LeNet(nn.Module):
    """conv5x5, activation, 2x2 max pooling, once per width; flatten; hidden layers; head.

    x [B, C, S, S] -> logits [B, K].
    """

    def __init__(
        self,
        channels: int,
        size: int,
        widths: tuple[int, ...],
        hidden: tuple[int, ...],
        num_classes: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((channels, *widths)):
            layers += [
                nn.Conv2d(a, b, 5, padding=2),
                activation_layer(activation),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            size = -(-size // 2)
        layers.append(nn.Flatten())
        units = ((channels, *widths)[-1] * size * size, *hidden)
        for a, b in pairwise(units):
            layers += [nn.Linear(a, b), activation_layer(activation)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(units[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


@models.register("lenet", tiny={"widths": [4, 8], "hidden": [16]}, fixed_size=True)
def lenet(
    info: ModelInfo,
    *,
    widths: tuple[Count, ...] = (32, 64),
    hidden: tuple[Count, ...] = (512,),
    activation: Activation = "relu",
) -> nn.Module:
    """W_2 a(W_1 vec(pool(a(conv(pool(a(conv(x)))))))): 5x5 convolutions, 2x2 max pooling, hidden layers.

    Takes images of side info.size only. There is no BatchNorm: attacks see the same network in training and
    in the test, and micro-batches change nothing.

    Args:
        info: classes, channels and size.
        widths: output channels of each convolution, at least one; each halves the side.
        hidden: units of each hidden layer.
        activation: relu, silu or gelu.

    10 classes, 1x28x28, defaults: 1,663,370 parameters and 12.3 M multiply-adds.
    Source: LeCun et al., Proceedings of the IEEE 86, 1998. The widths are those of the MNIST network of
    Madry et al., ICLR 2018, arXiv:1706.06083, whose hidden layer has 1024 units.
    """
    if not widths:
        raise ValueError("lenet needs at least one convolution: widths is empty")
    return kaiming(LeNet(info.inputs, info.size, tuple(widths), tuple(hidden), info.num_classes, activation))
