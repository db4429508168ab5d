"""ConvNeXt, with the patches of the paper or with convolutions as a stem."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.errors import ConfigError
from robustcli.models.architectures.blocks import Count, truncated
from robustcli.models.info import ModelInfo
from robustcli.registry import models

Stem = Literal["patch", "convstem", "convstem3"]
_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        normal = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normal.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """W2 gelu(W1 x) over the last dimension, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + g MLP(LN(depthwise 7x7 of x)); x [B, C, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm, self.mlp = nn.LayerNorm(dim, _EPS), Mlp(dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gamma * self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """LN and a 2x2 convolution of stride 2 where it `halves` H and W; then blocks of `dim` channels."""

    def __init__(self, before: int, dim: int, depth: int, halves: bool) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if halves:
            self.downsample = nn.Sequential(ChannelNorm(before), nn.Conv2d(before, dim, 2, 2))
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


class Head(nn.Module):
    """W LN(mean of the pixels) + b."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.norm, self.fc = nn.LayerNorm(dim, _EPS), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.flatten(self.pool(x))))
        return logits


class ConvStem(nn.Module):
    """conv3x3, LN, gelu for each width; the first two halve H and W."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise((channels, *widths))):
            stride = 2 if k < 2 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), ChannelNorm(outputs), nn.GELU()]
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stem(x)
        return out


class ConvNeXt(nn.Module):
    """Stem to a quarter of H and W, stages, head; each stage but the first halves H and W."""

    def __init__(
        self, stem: nn.Module, dims: tuple[int, ...], depths: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        before = (dims[0], *dims[:-1])
        shapes = zip(before, dims, depths, strict=True)
        self.stages = nn.Sequential(*(Stage(*shape, halves=k > 0) for k, shape in enumerate(shapes)))
        self.head = Head(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


@models.register("convnext", cite="arXiv:2201.03545", tiny={"dims": [8], "depths": [1]})
def convnext(
    info: ModelInfo,
    *,
    dims: tuple[Count, ...] = (96, 192, 384, 768),
    depths: tuple[Count, ...] = (3, 3, 9, 3),
    stem: Stem = "patch",
) -> nn.Module:
    """Blocks x + g MLP(LN(depthwise conv7x7(x))); each stage but the first halves H and W.

    Args:
        info: classes and channels.
        dims: channels of each stage: ConvNeXt-T as it is, -B begins with 128 and has depths [3, 3, 27, 3].
        depths: blocks of each stage, as many as dims. Images have at least 2^(stages + 1) pixels a side.
        stem: patch, a 4x4 convolution of stride 4 (the paper); convstem, two 3x3 convolutions of stride 2,
            or convstem3, with a third of stride 1: more robust after adversarial training (Singh et al. 2023,
            arXiv:2303.01870).

    1000 classes, 3x224x224: 28,589,128 parameters and 4.455 G multiply-adds. Raises ConfigError when dims and
    depths differ in length, for a stem that dims do not fit, or for smaller images.
    Source: Liu et al., CVPR 2022, arXiv:2201.03545.
    """
    if not dims or len(dims) != len(depths):
        raise ConfigError(
            f"model.depths: {len(depths)} depths for {len(dims)} dims", hint="one for each stage"
        )
    least = 2 ** (len(dims) + 1)
    if info.size < least:
        raise ConfigError(
            f"{len(dims)} stages need images of {least} pixels, and these have {info.size}",
            hint="a larger data.size, or fewer model.dims and model.depths",
        )
    return truncated(
        ConvNeXt(_stem(stem, info.inputs, dims[0]), tuple(dims), tuple(depths), info.num_classes),
        nn.Conv2d,
        nn.Linear,
    )


def _stem(name: Stem, channels: int, dim: int) -> nn.Module:
    if name == "patch":
        return nn.Sequential(nn.Conv2d(channels, dim, 4, 4), ChannelNorm(dim))
    half = dim // 2
    widths = (half, dim) if name == "convstem" else (half, half * 3 // 2, dim)
    if dim % 2:
        raise ConfigError(f"model.dims: {name} begins with half of {dim} channels", hint="an even number")
    return ConvStem(channels, widths)
