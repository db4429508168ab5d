"""Wide residual networks: WRN-16-4, WRN-28-10, WRN-34-10 and their kin."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from robustcli.errors import ConfigError
from robustcli.models.architectures.blocks import (
    Activation,
    Count,
    Padding,
    Rate,
    activation_layer,
    conv3x3,
    kaiming,
    padded3x3,
    stages,
)
from robustcli.models.info import ModelInfo
from robustcli.registry import models


def check_depth(depth: int) -> int:
    """`depth` when it is 6 n + 4 with n >= 1, else ValueError that names the nearest ones."""
    if depth < 10 or (depth - 4) % 6:
        below = max(10, depth - (depth - 4) % 6)
        raise ValueError(f"depth {depth} is not 6 n + 4; the nearest are {below} and {below + 6}")
    return depth


Depth = Annotated[int, Field(strict=True, ge=1, le=1000), AfterValidator(check_depth)]


class WideBlock(nn.Module):
    """u = a(BN(x)); y = conv(drop(a(BN(conv(u))))) + s, s = x or conv1x1(u), a the activation.

    x [B, inputs, H, W] -> y [B, outputs, H / stride, W / stride].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dropout: float,
        activation: Activation,
        padding: Padding,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = activation_layer(activation)
        self.pad, self.conv1 = padded3x3(inputs, outputs, stride, padding)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = activation_layer(activation)
        self.drop = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = conv3x3(outputs, outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.act1(self.bn1(x))
        residual: Tensor = self.conv2(self.drop(self.act2(self.bn2(self.conv1(self.pad(u))))))
        shortcut = self.shortcut(u) if self.projects else x
        return residual + shortcut


class WideResNet(nn.Module):
    """conv3x3 to 16, three groups of n blocks with 16k, 32k, 64k channels, a(BN), pooling, linear head.

    x [B, C, H, W] -> logits [B, K]. The first block of groups 2 and 3 halves H and W.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        width: int,
        num_classes: int,
        dropout: float,
        activation: Activation,
        padding: Padding,
    ) -> None:
        super().__init__()
        self.stem = conv3x3(channels, 16)
        block = partial(WideBlock, dropout=dropout, activation=activation, padding=padding)
        widths = (16 * width, 32 * width, 64 * width)
        self.groups = stages(block, 16, widths, [(depth - 4) // 6] * 3)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.act = activation_layer(activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.act(self.bn(self.groups(self.stem(x)))))))
        return logits


@models.register("wide_resnet", cite="arXiv:1605.07146", tiny={"depth": 10, "width": 1})
def wide_resnet(
    info: ModelInfo,
    *,
    depth: Depth = 28,
    width: Count = 10,
    dropout: Rate = 0.0,
    activation: Activation = "relu",
    padding: Padding = "centre",
) -> nn.Module:
    """Three groups of n = (depth - 4) / 6 pre-activation blocks with 16k, 32k, 64k channels, k = width.

    Takes images of any size. Called WRN-depth-width.

    Args:
        info: classes and channels.
        depth: 6 n + 4 convolution layers: 16, 28, 34 or 70, for example.
        width: k, the factor over 16, 32, 64 channels.
        dropout: probability of zeroing a unit between the two convolutions of a block, in [0, 1).
        activation: relu (the paper), silu (Gowal et al. 2020, arXiv:2010.03593) or gelu.
        padding: centre (the paper), or same: where the stride is 2, a pixel right and below (Gowal et al.).

    10 classes, 3x32x32: WRN-16-4 has 2,748,890 parameters, WRN-28-10 36,479,194 and 5.243 G multiply-adds,
    WRN-34-10 46,160,474 and 6.659 G. Raises ConfigError when depth is not 6 n + 4.
    Source: Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146, table 1 and figure 1d.
    """
    try:
        check_depth(depth)
    except ValueError as error:
        raise ConfigError(f"model.depth: {error}") from None
    return kaiming(WideResNet(info.inputs, depth, width, info.num_classes, dropout, activation, padding))
