"""Weights into a network: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.errors import NumericsError
from robustcli.models.normalised import NormalisedModel
from robustcli.store.state import compare_state
from robustcli.store.weights import read_weights


def holds_normalisation(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a NormalisedModel's weights: mean, std and backbone.…"""
    return {"mean", "std"} <= state.keys() and any(key.startswith("backbone.") for key in state)


def load_weights(model: nn.Module, path: Path, *, allow_pickle: bool = False) -> None:
    """All tensors of the file into `model`, or none: CheckpointError E-CKPT-SHAPE, NumericsError for NaN or Inf."""
    fill(model, read_weights(path, allow_pickle=allow_pickle), str(path), strict_dtype=False)


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str, *, strict_dtype: bool) -> None:
    """Compare, then copy. A NormalisedModel takes its backbone's keys too (weights saved without our normalisation).

    Args:
        state: {key: tensor}; `where` is its file, for messages.
        strict_dtype: False lets one floating type stand for another (foreign weights).

    Raises as `load_weights`; the model is then untouched.
    """
    target: nn.Module = model
    if isinstance(model, NormalisedModel) and _shared(model.backbone, state) > _shared(model, state):
        target = model.backbone
    compare_state(target.state_dict(), state, where=where, strict_dtype=strict_dtype)
    bad = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise NumericsError(
            f"the weights hold NaN or Inf: {', '.join(bad[:5])}",
            where=where,
            hint="take an earlier checkpoint",
        )
    target.load_state_dict(dict(state), strict=True)


def _shared(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    return len(model.state_dict().keys() & state.keys())
