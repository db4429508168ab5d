"""Layout of XCiT: timm's names, which Debenedetti et al. have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustcli.models.layouts.normalisations import CIFAR, IMAGENET
from robustcli.registry import layouts


@layouts.register(
    "xcit",
    arch="xcit",
    published="Debenedetti 2022, timm",
    marks=("patch_embed.proj.0.0.weight", "blocks.0.attn.temperature"),
    means={"patch": {10: 4, 100: 4, 0: 16}, "tokens_norm": True},
    normalize={**CIFAR, **IMAGENET},
)
def xcit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """dim = channels of the class token, heads = temperatures; blocks and convolutions are counted.

    Source: timm, and https://github.com/dedeswim/vits-robustness-torch.
    """
    return {
        "dim": tensors["cls_token"].shape[-1],
        "depth": _count(tensors, "blocks.{}.norm1.weight"),
        "heads": tensors["blocks.0.attn.temperature"].shape[0],
        "class_depth": _count(tensors, "cls_attn_blocks.{}.norm1.weight"),
        "convs": sum(f"patch_embed.proj.{2 * k}.0.weight" in tensors for k in range(8)),
    }


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    return sum(name.format(k) in tensors for k in range(1000))
