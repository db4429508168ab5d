"""XCiT and ConvNeXt with ConvStem as functions of {name in the authors' files: tensor}, in plain torch.

Written from the papers and the authors' definitions, independent of `robustcli.models.architectures`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class Maker:
    """Random tensors under names: weights of length 1 a row, positive variances."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self.draws = torch.Generator().manual_seed(seed)

    def put(self, name: str, *shape: int) -> None:
        fan = math.prod(shape[1:]) if len(shape) > 1 else 9
        self.state[name] = torch.randn(shape, generator=self.draws) / fan**0.5

    def layer(self, name: str, *shape: int) -> None:
        """A convolution or a linear layer with its bias."""
        self.put(f"{name}.weight", *shape)
        self.put(f"{name}.bias", shape[0])

    def norm(self, name: str, size: int, batch: bool = False) -> None:
        self.state[f"{name}.weight"] = 0.5 + torch.rand(size, generator=self.draws)
        self.put(f"{name}.bias", size)
        if batch:
            self.put(f"{name}.running_mean", size)
            self.state[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=self.draws)
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def xcit_state(dim: int, depth: int, heads: int, classes: int, seed: int = 0) -> State:
    make, a = Maker(seed), 3
    for k, b in enumerate((dim // 8, dim // 4, dim // 2, dim)):
        make.put(f"patch_embed.proj.{2 * k}.0.weight", b, a, 3, 3)
        make.norm(f"patch_embed.proj.{2 * k}.1", b, batch=True)
        a = b
    make.put("cls_token", 1, 1, dim)
    make.layer("pos_embed.token_projection", dim, 64, 1, 1)
    for block in [f"blocks.{k}" for k in range(depth)]:
        make.state[f"{block}.attn.temperature"] = 1 + torch.rand(heads, 1, 1, generator=make.draws)
        make.layer(f"{block}.attn.qkv", 3 * dim, dim)
        make.layer(f"{block}.local_mp.conv1", dim, 1, 3, 3)
        make.norm(f"{block}.local_mp.bn", dim, batch=True)
        make.layer(f"{block}.local_mp.conv2", dim, 1, 3, 3)
        make.norm(f"{block}.norm3", dim)
        make.put(f"{block}.gamma3", dim)
    for block in [f"cls_attn_blocks.{k}" for k in range(2)]:
        for part in "qkv":
            make.layer(f"{block}.attn.{part}", dim, dim)
    for block in [*(f"blocks.{k}" for k in range(depth)), "cls_attn_blocks.0", "cls_attn_blocks.1"]:
        make.layer(f"{block}.attn.proj", dim, dim)
        make.layer(f"{block}.mlp.fc1", 4 * dim, dim)
        make.layer(f"{block}.mlp.fc2", dim, 4 * dim)
        for part in ("norm1", "norm2"):
            make.norm(f"{block}.{part}", dim)
        for part in ("gamma1", "gamma2"):
            make.put(f"{block}.{part}", dim)
    make.norm("norm", dim)
    make.layer("head", classes, dim)
    return make.state


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def ln(s: State, name: str, x: Tensor) -> Tensor:
    """Over the last dimension, by its definition."""
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * s[f"{name}.weight"]
        + s[f"{name}.bias"]
    )


def bn(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5)


def mlp(s: State, name: str, x: Tensor) -> Tensor:
    return linear(s, f"{name}.fc2", F.gelu(linear(s, f"{name}.fc1", x)))


def positions(h: int, w: int) -> Tensor:
    """[1, 64, h, w]: sine and cosine of y, then of x, in turns."""
    out = torch.zeros(64, h, w)
    for k in range(32):
        wave = torch.sin if k % 2 == 0 else torch.cos
        by = 10000 ** (2 * (k // 2) / 32)
        for row in range(h):
            out[k, row] = wave(torch.tensor((row + 1) / (h + 1e-6) * 2 * math.pi / by))
        for column in range(w):
            out[32 + k, :, column] = wave(torch.tensor((column + 1) / (w + 1e-6) * 2 * math.pi / by))
    return out[None]


def xcit_logits(s: State, x: Tensor, heads: int, strides: tuple[int, ...]) -> Tensor:
    """`x` is normalised already."""
    for k, stride in enumerate(strides):
        x = bn(
            s,
            f"patch_embed.proj.{2 * k}.1",
            F.conv2d(x, s[f"patch_embed.proj.{2 * k}.0.weight"], None, stride, 1),
        )
        x = F.gelu(x) if k < len(strides) - 1 else x
    b, dim, h, w = x.shape
    where = F.conv2d(
        positions(h, w), s["pos_embed.token_projection.weight"], s["pos_embed.token_projection.bias"]
    )
    t = (x + where).reshape(b, dim, h * w).transpose(1, 2)
    for k in range(sum(name.endswith("temperature") for name in s)):
        p = f"blocks.{k}"
        parts = linear(s, f"{p}.attn.qkv", ln(s, f"{p}.norm1", t)).reshape(b, h * w, 3, heads, dim // heads)
        q, key, v = parts.unbind(2)
        q, key = (part / part.square().sum(1, keepdim=True).sqrt() for part in (q, key))
        scores = torch.einsum("bnhi,bnhj->bhij", q, key) * s[f"{p}.attn.temperature"]
        seen = torch.einsum("bhij,bnhj->bnhi", scores.softmax(-1), v).reshape(b, h * w, dim)
        t = t + s[f"{p}.gamma1"] * linear(s, f"{p}.attn.proj", seen)
        image = ln(s, f"{p}.norm3", t).transpose(1, 2).reshape(b, dim, h, w)
        one, two = f"{p}.local_mp.conv1", f"{p}.local_mp.conv2"
        image = F.gelu(F.conv2d(image, s[f"{one}.weight"], s[f"{one}.bias"], padding=1, groups=dim))
        image = bn(s, f"{p}.local_mp.bn", image)
        image = F.conv2d(image, s[f"{two}.weight"], s[f"{two}.bias"], padding=1, groups=dim)
        t = t + s[f"{p}.gamma3"] * image.reshape(b, dim, h * w).transpose(1, 2)
        t = t + s[f"{p}.gamma2"] * mlp(s, f"{p}.mlp", ln(s, f"{p}.norm2", t))
    t = torch.cat([s["cls_token"].expand(b, 1, dim), t], 1)
    for k in range(2):
        p = f"cls_attn_blocks.{k}"
        n = ln(s, f"{p}.norm1", t)
        q, key, v = (linear(s, f"{p}.attn.{part}", n).reshape(b, -1, heads, dim // heads) for part in "qkv")
        scores = torch.einsum("bhi,bnhi->bhn", q[:, 0], key) / (dim // heads) ** 0.5
        seen = torch.einsum("bhn,bnhi->bhi", scores.softmax(-1), v).reshape(b, 1, dim)
        attended = torch.cat([linear(s, f"{p}.attn.proj", seen), n[:, 1:]], 1)
        t = ln(s, f"{p}.norm2", t + s[f"{p}.gamma1"] * attended)
        token = t[:, :1] + s[f"{p}.gamma2"] * mlp(s, f"{p}.mlp", t[:, :1])
        t = torch.cat([token, 2 * t[:, 1:]], 1)  # the authors add the other tokens to themselves
    return linear(s, "head", ln(s, "norm", t)[:, 0])


def convnext_state(
    dims: tuple[int, ...], depths: tuple[int, ...], classes: int, stem: str, seed: int = 0
) -> State:
    make, half = Maker(seed), dims[0] // 2
    if stem == "patch":
        make.layer("stem.0", dims[0], 3, 4, 4)
        make.norm("stem.1", dims[0])
    else:
        widths = [3, half, dims[0]] if stem == "convstem" else [3, half, half * 3 // 2, dims[0]]
        for k in range(len(widths) - 1):
            make.layer(f"stem.stem.{3 * k}", widths[k + 1], widths[k], 3, 3)
            make.norm(f"stem.stem.{3 * k + 1}", widths[k + 1])
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        if i:
            make.norm(f"stages.{i}.downsample.0", dims[i - 1])
            make.layer(f"stages.{i}.downsample.1", dim, dims[i - 1], 2, 2)
        for p in [f"stages.{i}.blocks.{j}" for j in range(depth)]:
            make.layer(f"{p}.conv_dw", dim, 1, 7, 7)
            make.norm(f"{p}.norm", dim)
            make.layer(f"{p}.mlp.fc1", 4 * dim, dim)
            make.layer(f"{p}.mlp.fc2", dim, 4 * dim)
            make.put(f"{p}.gamma", dim)
    make.norm("head.norm", dims[-1])
    make.layer("head.fc", classes, dims[-1])
    return make.state


def convnext_logits(s: State, x: Tensor, depths: tuple[int, ...], stem: str) -> Tensor:
    """`x` is normalised already."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride, padding, groups=groups)

    def channels(name: str, x: Tensor) -> Tensor:
        return ln(s, name, x.movedim(1, -1)).movedim(-1, 1)

    if stem == "patch":
        x = channels("stem.1", conv("stem.0", x, 4))
    else:
        for k in range(2 if stem == "convstem" else 3):
            x = conv(f"stem.stem.{3 * k}", x, 2 if k < 2 else 1, 1)
            x = F.gelu(channels(f"stem.stem.{3 * k + 1}", x))
    for i, depth in enumerate(depths):
        if i:
            x = conv(f"stages.{i}.downsample.1", channels(f"stages.{i}.downsample.0", x), 2)
        for p in [f"stages.{i}.blocks.{j}" for j in range(depth)]:
            y = ln(s, f"{p}.norm", conv(f"{p}.conv_dw", x, 1, 3, x.shape[1]).movedim(1, -1))
            x = x + (s[f"{p}.gamma"] * mlp(s, f"{p}.mlp", y)).movedim(-1, 1)
    return linear(s, "head.fc", ln(s, "head.norm", x.mean((2, 3))))
