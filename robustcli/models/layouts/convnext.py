"""Layouts of ConvNeXt: timm's names, with the stem of the paper or that of Singh et al."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustcli.models.layouts.normalisations import IMAGENET, PIXELS
from robustcli.registry import layouts


@layouts.register(
    "convnext",
    arch="convnext",
    published="Liu 2023 (ARES), timm",
    marks=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    head="head.fc.weight",
    normalize=IMAGENET,
)
@layouts.register(
    "convnext.convstem",
    arch="convnext",
    published="Singh 2023 (ConvStem)",
    marks=("stages.0.blocks.0.conv_dw.weight", "stem.stem.0.weight"),
    head="head.fc.weight",
    normalize=PIXELS,
)
def convnext(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """dims and depths: channels and number of the depthwise convolutions of each stage.

    Source: timm, and https://github.com/nmndeep/revisiting-at.
    """
    firsts = [name for k in range(100) if (name := _name(k, 0)) in tensors]
    counts = [sum(_name(k, block) in tensors for block in range(1000)) for k in range(len(firsts))]
    stem = "convstem" if "stem.stem.0.weight" in tensors else "patch"
    if "stem.stem.6.weight" in tensors:
        stem = "convstem3"
    dims = tuple(tensors[name].shape[0] for name in firsts)
    return {"dims": dims, "depths": tuple(counts), "stem": stem}


def _name(stage: int, block: int) -> str:
    return f"stages.{stage}.blocks.{block}.conv_dw.weight"
