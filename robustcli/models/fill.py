"""Weights into a network: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.errors import CheckpointError, NumericsError, UsageError
from robustcli.models.normalised import Normalisation, NormalisedModel, parse_normalize
from robustcli.store.names import BATCHES, Kind, Normaliser, find
from robustcli.store.state import compare_state
from robustcli.store.weights import read_weights


def holds_normalisation(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a NormalisedModel: mean, std and keys that begin with ``backbone.``"""
    return {"mean", "std"} <= state.keys() and any(key.startswith("backbone.") for key in state)


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    allow_pickle: bool = False,
    kind: Kind = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """All tensors of the file into `model`, or none. Raises as `fill`, and as `read_weights`."""
    state = read_weights(path, allow_pickle=allow_pickle, kind=kind)
    fill(model, state, str(path), strict_dtype=False, kind=kind, say=say)


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    *,
    strict_dtype: bool,
    normalize: str | None = None,
    kind: Kind = "auto",
    say: Callable[[str], None] = lambda text: None,
    named: Callable[[str], str] = str,
) -> None:
    """All tensors into `model`, or none.

    Names that wrappers put in front are removed, see `store.names.find`. A NormalisedModel takes the mean and
    std of a normaliser that stood around the network.

    Args:
        model: receives the tensors.
        state: {key: tensor}.
        where: the file of `state`, for messages.
        strict_dtype: False lets one floating type stand for another (foreign weights).
        normalize: what the caller says that the network expects; a normaliser in the file must agree.
        kind, say: as `read_weights`.
        named: how a tensor of the network is called in the file, for messages.

    Raises CheckpointError E-CKPT-SHAPE when they do not fit, NumericsError for NaN or Inf, UsageError for a
    normaliser that `model` has no place for. `model` is then untouched.
    """
    target, tensors, normaliser = model, dict(state), None
    if state.keys() != model.state_dict().keys():
        target = model.backbone if isinstance(model, NormalisedModel) else model
        found = find(state, target.state_dict(), where=where, kind=kind, say=say)
        tensors, normaliser = found.tensors, found.normaliser
        if tensors.keys() != target.state_dict().keys() and _looks_like_ours(model, state):
            target, tensors, normaliser = model, dict(state), None
        if not strict_dtype:
            tensors = _with_counts(target, tensors)
    compare_state(target.state_dict(), tensors, where=where, strict_dtype=strict_dtype, named=named)
    not_finite = [key for key, value in state.items() if not _is_finite(value)]
    if not_finite:
        raise NumericsError(
            f"the weights hold NaN or Inf: {', '.join(not_finite[:5])}",
            where=where,
            hint="take an earlier checkpoint",
        )
    if normaliser is not None:
        _normalise_as(model, normaliser, normalize, where, say)
    target.load_state_dict(tensors, strict=True)


def _with_counts(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that lack nothing but counts of batches, with those of `model`: no answer depends on them.

    Where momentum is None, training weighs its running statistics by them, and they stay missing.
    """
    counts = {
        f"{path}.{BATCHES}".removeprefix("."): layer.num_batches_tracked
        for path, layer in model.named_modules()
        if isinstance(getattr(layer, BATCHES, None), Tensor) and getattr(layer, "momentum", None) is not None
    }
    completed = counts | tensors
    return completed if completed.keys() == model.state_dict().keys() else tensors


def _normalise_as(
    model: nn.Module, normaliser: Normaliser, normalize: str | None, where: str, say: Callable[[str], None]
) -> None:
    """Give `model` the mean and std of the normaliser in the file.

    Raises UsageError when it has no place for them, or when `normalize` says something else.
    """
    numbers = ",".join(f"{value:g}" for values in normaliser for value in values.tolist())
    if normalize is not None:
        if _agree(parse_normalize(normalize), normaliser):
            return
        raise UsageError(
            f"the weights hold a normaliser of {numbers}",
            where=where,
            hint="drop --normalize",
            code="E-MODEL",
        )
    if not isinstance(model, NormalisedModel):
        raise UsageError(
            "the weights hold a normaliser, and the network has none",
            where=where,
            hint=f"pass --normalize {numbers} (normalize= in Python)",
            code="E-MODEL",
        )
    parse_normalize(numbers)  # a mean of pixels 0..255 is refused
    channels = model.mean.shape[1]
    mean, std = (tuple(values.expand(channels).tolist()) for values in _of(normaliser, channels, where))
    say(f"{where}: normalisation {numbers}, as the weights hold it")
    model.set_normalisation(mean, std)


def _of(normaliser: Normaliser, channels: int, where: str) -> Normaliser:
    """The normaliser itself. Raises CheckpointError when it is that of images of other channels."""
    if len(normaliser[0]) not in (1, channels):
        raise CheckpointError(
            f"the weights normalise {len(normaliser[0])} channels, and the network takes {channels}",
            where=where,
            code="E-CKPT-SHAPE",
        )
    return normaliser


def _looks_like_ours(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a file that does not fit has the keys of our own checkpoints; the error then names these."""
    if not isinstance(model, NormalisedModel):
        return False
    ours, bare = (len(net.state_dict().keys() & state.keys()) for net in (model, model.backbone))
    return ours > bare


def _agree(said: Normalisation, normaliser: Normaliser) -> bool:
    """Whether means and deviations are the same to the digits that people write."""
    for numbers, values in zip(said, normaliser, strict=True):
        expected = torch.tensor(numbers)
        if len(expected) not in (1, len(values)):
            return False
        if not torch.allclose(expected.expand(values.shape), values, atol=1e-3):
            return False
    return True


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
