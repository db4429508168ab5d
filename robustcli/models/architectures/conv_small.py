"""Strided convolutions and hidden layers, no pooling: the networks of papers on certified training."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from robustcli.errors import ConfigError
from robustcli.models.architectures.blocks import Activation, Count, Stride, activation_layer, kaiming
from robustcli.models.info import ModelInfo
from robustcli.registry import models

Kernel = Annotated[int, Field(strict=True, ge=2, le=7)]


class ConvSmall(nn.Module):
    """convolution, [BatchNorm,] activation, once per width; flatten; hidden layers likewise; head.

    x [B, C, S, S] -> logits [B, K].
    """

    def __init__(
        self,
        info: ModelInfo,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        kernel: int,
        hidden: tuple[int, ...],
        activation: Activation,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = info.size
        for (a, b), stride in zip(pairwise((info.inputs, *widths)), strides, strict=True):
            layers.append(nn.Conv2d(a, b, kernel, stride, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(b)] * batch_norm + [activation_layer(activation)]
            size = (size + 2 - kernel) // stride + 1
            if size < 1:
                raise ConfigError(
                    f"model.widths: images of side {info.size} are used up after {b} channels",
                    hint="fewer widths, smaller strides or a smaller kernel",
                )
        layers.append(nn.Flatten())
        units = ((info.inputs, *widths)[-1] * size * size, *hidden)
        for a, b in pairwise(units):
            layers.append(nn.Linear(a, b, bias=not batch_norm))
            layers += [nn.BatchNorm1d(b)] * batch_norm + [activation_layer(activation)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(units[-1], info.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


@models.register("conv_small", tiny={"widths": [4], "strides": [2], "hidden": [16]}, fixed_size=True)
def conv_small(
    info: ModelInfo,
    *,
    widths: tuple[Count, ...] = (16, 32),
    strides: tuple[Stride, ...] = (2, 2),
    kernel: Kernel = 4,
    hidden: tuple[Count, ...] = (100,),
    activation: Activation = "relu",
    batch_norm: bool = False,
) -> nn.Module:
    """W_2 a(W_1 vec(a(conv(a(conv(x)))))): strided convolutions with padding 1, hidden layers, no pooling.

    Bounds of such a network stay narrow: no pooling, few layers. Takes images of side info.size only. CNN7 of
    the papers is `{widths: [64, 64, 128, 128, 128], strides: [1, 1, 2, 1, 1], kernel: 3, hidden: [512],
    batch_norm: true}`.

    Args:
        info: classes, channels and size.
        widths: output channels of each convolution.
        strides: stride of each convolution, as many as widths.
        kernel: side of all kernels.
        hidden: units of each hidden layer.
        activation: relu, silu or gelu.
        batch_norm: BatchNorm after each convolution and each hidden layer, which then have no bias.

    10 classes, 1x28x28, defaults: 166,406 parameters and 0.61 M multiply-adds.
    Raises ConfigError when strides has another length than widths, or an image is smaller than a kernel.
    Source: ConvSmall of Mirman et al., ICML 2018, proceedings.mlr.press/v80/mirman18b.html; CNN7 of Shi et
    al., NeurIPS 2021, arXiv:2103.17268.
    """
    if len(strides) != len(widths):
        raise ConfigError(
            f"model.strides: {len(strides)} strides for {len(widths)} widths",
            hint="give one stride for each width",
        )
    return kaiming(
        ConvSmall(info, tuple(widths), tuple(strides), kernel, tuple(hidden), activation, batch_norm)
    )
