"""`load_model`: one door for every place a trained network may come from.

It has more than 50 lines because it is public: most of them are its signature and its documentation.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.config.spec import COMMAND
from robustcli.errors import PolicyError, UsageError
from robustcli.models.fill import load_weights
from robustcli.models.normalised import normalised
from robustcli.models.programs import Program
from robustcli.models.references import loader_of
from robustcli.models.request import DataFacts, Request
from robustcli.store.names import Kind


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def load_model(
    spec: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    arch: str | None = None,
    params: Mapping[str, Any] | None = None,
    plugin: str | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalize: str | None = None,
    allow_pickle: bool = False,
    download: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
    weights_kind: Kind = "auto",
    timeout: float = 30.0,
    say: Callable[[str], None] = _warn,
) -> nn.Module:
    """A classifier, pixels [B, C, H, W] in [0, 1] -> logits [B, K], in eval mode on `device`.

    Args:
        spec: ``run:PATH`` (its best checkpoint, else its last) or a checkpoint directory; ``guard:DIR`` (a
            model behind its defences, logits [B, K + 1]); ``file.py:factory`` (runs that code);
            ``torchvision:NAME[@WEIGHTS]``, ``timm:NAME[@pretrained]``, ``hf:DIR_OR_NAME`` or a registered
            name; ``command:PROGRAM ARGS`` (a black box of labels, needs `num_classes`; runs that program);
            ``onnx:FILE`` (a black box of scores); a weight file with `arch` or `plugin`; or an nn.Module,
            which is returned as it is, or wrapped by `normalize`, with its device and its mode untouched.
        weights: .safetensors or .npz, one tensor per state_dict key; .pt and its kin with `allow_pickle`.
        arch, params: name and parameters of the architecture of a bare weight file.
        plugin: ``file.py:factory`` makes the network in place of a registered name; ``file.py`` is run first
            and may register names.
        num_classes, channels, size, mean, std: the data's; what is missing is read from the weights. A
            `num_classes` that differs from pretrained weights gives the network a fresh head, for
            fine-tuning. A network without any weights is built only when `num_classes` is given.
        normalize: ``imagenet`` or ``m1,m2,m3,s1,s2,s3``: what a foreign network expects. Refused for our own
            checkpoints.
        seed: of whatever is not loaded.
        weights_kind: which weights are meant where a file holds raw ones and their average (EMA, SWA):
            ``averaged``, ``raw``, or ``auto``, which takes the average.
        timeout: seconds until the program of ``command:`` must have answered.
        say: told what was chosen in a weight file; warnings by default.

    Raises:
        CheckpointError (exit 4): missing, damaged or unfitting weights, with the first five missing,
        unexpected and mismatching tensors; nothing is ever loaded in part. NumericsError (5): NaN in the
        weights. PolicyError (9): a file that may run code, or an address. UsageError, ConfigError (2): what
        to load is unclear.
    """
    if isinstance(spec, nn.Module):
        if weights is not None:
            load_weights(spec, Path(weights), allow_pickle=allow_pickle, kind=weights_kind, say=say)
        return spec if normalize is None else normalised(spec, normalize)
    reference = os.fspath(spec)
    if reference.startswith(COMMAND):
        return _program(reference, num_classes, timeout, say)
    _refuse_address(reference)
    data = DataFacts(num_classes, channels, size, _floats(mean), _floats(std))
    request = Request(
        weights, arch, params or {}, plugin, data, normalize, allow_pickle, download, seed, weights_kind, say
    )
    load, reference = loader_of(reference, request)
    return load(reference, request).eval().to(device)


def _program(
    reference: str, num_classes: int | None, timeout: float, say: Callable[[str], None]
) -> nn.Module:
    """The black box behind ``command:``. Raises UsageError E-MODEL where nobody says how many classes."""
    if num_classes is None:
        raise UsageError(f"{reference} does not say its classes", hint="give num_classes", code="E-MODEL")
    return Program(reference, num_classes, timeout, say)


def _refuse_address(reference: str) -> None:
    if reference.lower().startswith(("http://", "https://", "ftp://", "file://")):
        raise PolicyError(
            "models are not fetched from addresses",
            where=reference,
            hint="download the weights, check their hash, name the file",
        )


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
