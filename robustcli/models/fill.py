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
    """Whether these are the weights of a NormalisedModel: mean, std and keys that begin with ``backbone.``"""
    return {"mean", "std"} <= state.keys() and any(key.startswith("backbone.") for key in state)


def load_weights(model: nn.Module, path: Path, *, allow_pickle: bool = False) -> None:
    """All tensors of the file into `model`, or none. Raises as `fill`, and as `read_weights`."""
    fill(model, read_weights(path, allow_pickle=allow_pickle), str(path), strict_dtype=False)


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str, *, strict_dtype: bool) -> None:
    """All tensors into `model`, or none.

    A NormalisedModel also takes weights that were saved without our normalisation: the keys of its backbone.

    Args:
        model: receives the tensors.
        state: {key: tensor}.
        where: the file of `state`, for messages.
        strict_dtype: False lets one floating type stand for another (foreign weights).

    Raises CheckpointError E-CKPT-SHAPE when they do not fit, NumericsError for NaN or Inf. `model` is then
    untouched.
    """
    target: nn.Module = model
    if isinstance(model, NormalisedModel) and _common_keys(model.backbone, state) > _common_keys(
        model, state
    ):
        target = model.backbone
    compare_state(target.state_dict(), state, where=where, strict_dtype=strict_dtype)
    not_finite = [key for key, value in state.items() if not _is_finite(value)]
    if not_finite:
        raise NumericsError(
            f"the weights hold NaN or Inf: {', '.join(not_finite[:5])}",
            where=where,
            hint="take an earlier checkpoint",
        )
    target.load_state_dict(dict(state), strict=True)


def _common_keys(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    return len(model.state_dict().keys() & state.keys())


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
