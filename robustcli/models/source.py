"""`load_model`: one door for every place a trained network may come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.errors import CheckpointError, PolicyError, UsageError
from robustcli.models.build import build_model, build_plugin
from robustcli.models.fill import fill, holds_normalisation, load_weights
from robustcli.models.infer import Shape, infer_info
from robustcli.models.meta import model_from_meta
from robustcli.models.normalised import NormalisedModel, parse_normalize
from robustcli.models.plugin import call_factory, is_plugin, run_plugin, split_plugin
from robustcli.store.latest import resolve_run
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.snapshot import load_checkpoint
from robustcli.store.weights import CODE_FORMATS, read_weights

WEIGHT_FILES = (".safetensors", ".npz", *CODE_FORMATS)


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
) -> nn.Module:
    """A classifier, pixels [B, C, H, W] in [0, 1] -> logits [B, K], in eval mode on `device`.

    Args:
        spec: ``run:PATH`` (its best checkpoint, else its last) or a checkpoint directory; ``file.py:factory`` (runs that code);
            ``torchvision:NAME[@WEIGHTS]``, ``timm:NAME[@pretrained]`` or a registered name; a weight file with `arch` or `plugin`;
            or an nn.Module, returned as it is (or wrapped by `normalize`), its device and mode untouched.
        weights: .safetensors or .npz, one tensor per state_dict key; .pt and its kin with `allow_pickle`.
        arch, params: name and parameters of the architecture of a bare weight file.
        plugin: ``file.py:factory`` makes the network in place of a registered name; ``file.py`` is run first and may register names.
        num_classes, channels, size, mean, std: the data's; what is missing is read from the weights. A `num_classes` that
            differs from pretrained weights gives the network a fresh head (for fine-tuning), and a network without any weights
            is built only when `num_classes` is given.
        normalize: ``imagenet`` or ``m1,m2,m3,s1,s2,s3``: what a foreign network expects. Refused for our own checkpoints.
        seed: of whatever is not loaded.

    Raises:
        CheckpointError (exit 4): missing, damaged or unfitting weights, listing the first five missing, unexpected and mismatching
        tensors; nothing is ever loaded in part. NumericsError (5): NaN in the weights. PolicyError (9): a file that may run code,
        or an address. UsageError, ConfigError (2): what to load is unclear.
    """
    if isinstance(spec, nn.Module):
        if weights is not None:
            load_weights(spec, Path(weights), allow_pickle=allow_pickle)
        return spec if normalize is None else _normalised(spec, normalize)
    text = os.fspath(spec)
    if text.lower().startswith(("http://", "https://", "ftp://", "file://")):
        raise PolicyError(
            "models are not fetched from addresses",
            where=text,
            hint="download the weights, check their hash, name the file",
        )
    if text.startswith("run:") or Path(text).is_dir():
        if weights is not None or normalize is not None:
            raise UsageError(
                f"{text} holds its weights and its normalisation",
                hint="drop --normalize and weights",
                code="E-MODEL",
            )
        return _from_checkpoint(resolve_run(Path(text.removeprefix("run:"))), plugin).eval().to(device)
    if Path(text).suffix.lower() in WEIGHT_FILES:
        text, weights = _architecture(text, weights, arch, plugin), text
    elif plugin is not None and split_plugin(plugin)[1]:
        text = plugin
    state = read_weights(Path(weights), allow_pickle=allow_pickle) if weights is not None else None
    shape = Shape(
        num_classes,
        channels,
        size,
        tuple(mean) if mean is not None else None,
        tuple(std) if std is not None else None,
    )
    if is_plugin(text):
        model = _from_factory(text, state, params or {}, shape, normalize, str(weights), seed)
    else:
        if plugin is not None:
            run_plugin(split_plugin(plugin)[0])
        model = _from_name(text, state, params or {}, shape, normalize, str(weights), download, seed)
    return model.eval().to(device)


def _architecture(file: str, weights: str | Path | None, arch: str | None, plugin: str | None) -> str:
    """What builds the network for a bare weight file, which must exist and be the only one."""
    if not Path(file).exists():
        raise CheckpointError("no such weight file", where=file, code="E-CKPT-MISSING")
    if weights is not None:
        raise UsageError(f"two weight files: {file} and {weights}", hint="give one", code="E-MODEL")
    if arch is not None:
        return arch
    if plugin is not None and split_plugin(plugin)[1]:
        return plugin
    raise UsageError(
        f"{file} holds weights, not the network",
        hint="say which: model.name=NAME with weights, or --plugin FILE.py:factory",
        code="E-MODEL",
    )


def _normalised(model: nn.Module, normalize: str) -> NormalisedModel:
    """A foreign network behind the normalisation it expects."""
    if isinstance(model, NormalisedModel):
        raise UsageError("this model normalises already", hint="drop --normalize", code="E-MODEL")
    wrapped = NormalisedModel(model, *parse_normalize(normalize))
    wrapped.train(model.training)
    like = next(model.parameters(), torch.empty(0))
    return wrapped.to(like.device)


def _from_checkpoint(path: Path, plugin: str | None) -> NormalisedModel:
    """A run directory, its checkpoints directory, or one checkpoint. The named one or nothing: no fallback to an older one."""
    if not path.is_dir():
        raise CheckpointError(
            f"no such run: {path}", hint="a run is a directory with checkpoints/ in it", code="E-CKPT-MISSING"
        )
    if not (path / "manifest.json").exists():
        root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        tags = [tag for tag in ("best", "last") if os.path.lexists(root / tag)]
        if not tags:
            raise CheckpointError(
                "no checkpoint here",
                where=str(root),
                hint="name a run directory or one of its checkpoints",
                code="E-CKPT-MISSING",
            )
        path = resolve_checkpoint(root, tags[0])
    snapshot = load_checkpoint(path)
    if "model" not in snapshot.groups:
        raise CheckpointError("the checkpoint holds no model", where=str(path), code="E-CKPT-META")
    model = model_from_meta(snapshot.meta, plugin=plugin, where=str(path))
    fill(model, snapshot.groups["model"], str(path), strict_dtype=True)
    model.sha256 = snapshot.sha256
    return model


def _from_factory(
    factory: str,
    state: Mapping[str, Tensor] | None,
    params: Mapping[str, Any],
    shape: Shape,
    normalize: str | None,
    where: str,
    seed: int,
) -> nn.Module:
    """The user's network: fitted to the data when their shape is known (it can be trained then), else as the factory made it."""
    info = shape.info()
    if info is not None:
        model: nn.Module = build_plugin(factory, params, info, seed=seed, normalize=normalize)
    else:
        model = call_factory(factory, num_classes=shape.num_classes, params=params, seed=seed)
    if state is not None:
        fill(model, state, where, strict_dtype=False)
    return model if info is not None or normalize is None else _normalised(model, normalize)


def _from_name(
    name: str,
    state: Mapping[str, Tensor] | None,
    params: Mapping[str, Any],
    shape: Shape,
    normalize: str | None,
    where: str,
    download: bool,
    seed: int,
) -> nn.Module:
    """A registered, torchvision or timm network, with the weights of a file when there is one."""
    if state is not None and holds_normalisation(state) and normalize is not None:
        raise UsageError(f"{where} normalises inside", hint="drop --normalize", code="E-MODEL")
    model = build_model(
        name, params, infer_info(name, state, shape), seed=seed, normalize=normalize, download=download
    )
    if state is not None:
        fill(model, state, where, strict_dtype=False)
    return model
