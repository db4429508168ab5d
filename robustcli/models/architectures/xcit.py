"""XCiT: transformers that attend over channels, for images of any size."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.errors import ConfigError
from robustcli.models.architectures.blocks import Count, truncated
from robustcli.models.info import ModelInfo
from robustcli.registry import models

Layers = Annotated[int, Field(strict=True, ge=1, le=200)]
_EPS = 1e-6
_HIDDEN = 32  # frequencies of the positions, per direction
_LONGEST = 1024  # patches in a row


class Positions(nn.Module):
    """P(sin, cos of y and x / 10000^(k / 32)), y and x in (0, 2 pi]: [B, D, h, w] -> [1, D, h, w].

    Source: the authors' encoding, arXiv:2106.09681, section 4.
    """

    steps: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _HIDDEN, dim, 1)
        # Computed by Python: on "meta" these operations would import torch's compiler.
        steps = [float(k) for k in range(1, _LONGEST + 1)]
        scale = [1e4 ** (2 * (k // 2) / _HIDDEN) for k in range(_HIDDEN)]
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        steps, height, width = self.steps.type_as(image), image.shape[2], image.shape[3]
        y = self._waves(steps[:height])[:, None].expand(-1, width, -1)
        x = self._waves(steps[:width])[None].expand(height, -1, -1)
        waves = torch.cat([y, x], dim=2).permute(2, 0, 1)[None]
        encoded: Tensor = self.token_projection(waves)
        return encoded

    def _waves(self, steps: Tensor) -> Tensor:
        """[n] -> [n, 32]."""
        angles = (steps / (steps[-1:] + _EPS) * (2 * math.pi))[:, None] / self.scale
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)


class Mlp(nn.Module):
    """W2 gelu(W1 x), four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class ChannelAttention(nn.Module):
    """softmax(t k' q) v over channels, k and q of length 1 over the tokens; x [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)  # [3, B, heads, d, N]
        q, k, v = F.normalize(qkv[0], dim=-1), F.normalize(qkv[1], dim=-1), qkv[2]
        weights = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).permute(0, 3, 1, 2).flatten(2))
        return out


class LocalPatches(nn.Module):
    """Two depthwise 3x3 convolutions over the patches, gelu and BN between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, (height, width))
        image = self.conv2(self.bn(self.act(self.conv1(image))))
        tokens: Tensor = image.flatten(2).transpose(1, 2)
        return tokens


class Block(nn.Module):
    """x + g1 XCA(LN x), then + g3 LPI(LN x), then + g2 MLP(LN x)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, _EPS), ChannelAttention(dim, heads)
        self.norm3, self.local_mp = nn.LayerNorm(dim, _EPS), LocalPatches(dim)
        self.norm2, self.mlp = nn.LayerNorm(dim, _EPS), Mlp(dim)
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(torch.ones(dim)) for _ in range(3))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = x + self.gamma3 * self.local_mp(self.norm3(x), height, width)
        out: Tensor = x + self.gamma2 * self.mlp(self.norm2(x))
        return out


class ClassAttention(nn.Module):
    """What the first token sees in all: [B, N, D] -> [B, 1, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x[:, :1])), self._split(self.k(x)), self._split(self.v(x))
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        seen: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return seen

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, d]."""
        parts: Tensor = x.unflatten(2, (self.heads, -1))
        return parts.transpose(1, 2)


class ClassBlock(nn.Module):
    """Class attention, then an MLP for the first token; `tokens_norm` normalises the others, too."""

    def __init__(self, dim: int, heads: int, tokens_norm: bool) -> None:
        super().__init__()
        self.tokens_norm = tokens_norm
        self.norm1, self.attn = nn.LayerNorm(dim, _EPS), ClassAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, _EPS), Mlp(dim)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm1(x)
        x = x + self.gamma1 * torch.cat([self.attn(normal), normal[:, 1:]], dim=1)
        if self.tokens_norm:
            x = self.norm2(x)
        else:
            x = torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
        token = self.gamma2 * self.mlp(x[:, :1])
        return x + torch.cat([token, x[:, 1:]], dim=1)


class Patches(nn.Module):
    """Convolutions 3x3 with BN, twice the channels each; the last log2(patch) have stride 2."""

    def __init__(self, channels: int, dim: int, convs: int, patch: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(convs):
            outputs = dim // 2 ** (convs - 1 - k)
            stride = 1 if k < convs - int(math.log2(patch)) else 2
            conv = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(outputs)), nn.GELU()]
            channels = outputs
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.proj(x)
        return image


class XCiT(nn.Module):
    """Patches and positions, blocks, then a class token, class blocks, LN, head; [B, C, H, W] -> [B, K]."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        dim: int,
        heads: int,
        depths: tuple[int, int],
        stem: tuple[int, int],
        tokens_norm: bool,
    ) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = Patches(channels, dim, *stem), Positions(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depths[0]))
        self.cls_attn_blocks = nn.ModuleList(ClassBlock(dim, heads, tokens_norm) for _ in range(depths[1]))
        self.norm, self.head = nn.LayerNorm(dim, _EPS), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        image = self.patch_embed(x)
        tokens = (image + self.pos_embed(image)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, image.shape[2], image.shape[3])
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.cls_attn_blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


@models.register("xcit", cite="arXiv:2106.09681", tiny={"dim": 16, "depth": 1, "heads": 2, "patch": 4})
def xcit(
    info: ModelInfo,
    *,
    dim: Count = 384,
    depth: Layers = 12,
    heads: Layers = 8,
    class_depth: Layers = 2,
    patch: Literal[2, 4, 8, 16] = 16,
    convs: Literal[3, 4] = 4,
    tokens_norm: bool = True,
) -> nn.Module:
    """Blocks x + g XCA(LN x), + g LPI(LN x), + g MLP(LN x), then class attention; any image size.

    Args:
        info: classes and channels.
        dim: channels of a token: 384 is XCiT-S, 512 XCiT-M, 768 XCiT-L; a multiple of 2^(convs - 1) and
            of heads.
        depth: blocks.
        heads: of the attention; 8 in XCiT-S and XCiT-M, 16 in XCiT-L.
        class_depth: blocks of class attention behind them.
        patch: pixels of a patch's side: 16 for ImageNet, 4 for CIFAR (Debenedetti et al. 2022,
            arXiv:2209.07399), at most 2^convs.
        convs: convolutions that make the patches.
        tokens_norm: whether class attention normalises all tokens, or the class token alone.

    dim 384, 1000 classes, 3x224x224: 26,253,304 parameters and 4.8 G multiply-adds. Raises ConfigError for a
    dim or patch that does not fit.
    Source: El-Nouby et al., NeurIPS 2021, arXiv:2106.09681.
    """
    if dim % 2 ** (convs - 1) or dim % heads:
        raise ConfigError(f"model.dim: {dim} is no multiple of {2 ** (convs - 1)} and of {heads} heads")
    if patch > 2**convs:
        raise ConfigError(f"model.patch: {patch} needs more than {convs} convolutions", hint="patch: 8")
    net = XCiT(info.inputs, info.num_classes, dim, heads, (depth, class_depth), (convs, patch), tokens_norm)
    return truncated(net, nn.Linear)
