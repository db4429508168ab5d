"""The kinds of references to a model, one function each: (reference, request) -> network on the CPU.

    from_run            run:PATH, or a checkpoint directory
    from_guard          guard:DIR
    from_onnx           onnx:FILE, or a file that ends in .onnx
    from_weight_file    a file of weights; `request` says which network they belong to
    from_factory        file.py:factory
    from_name           a registered name, torchvision:NAME[@WEIGHTS], timm:NAME[@pretrained], hf:DIR_OR_NAME

`loader_of` tells which one a reference needs. `load_model` is the door in front of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from robustcli.config.spec import GUARD, ONNX
from robustcli.errors import CheckpointError, RobustCliError, UsageError
from robustcli.foreign import MODULE
from robustcli.models.build import build_model
from robustcli.models.factory import build_plugin, call_factory, check_factory
from robustcli.models.fill import fill, holds_normalisation
from robustcli.models.guard_file import open_guard
from robustcli.models.guarded import GuardedModel
from robustcli.models.infer import infer_info
from robustcli.models.meant import meant_model
from robustcli.models.meta import model_from_meta
from robustcli.models.normalised import NormalisedModel, normalised
from robustcli.models.onnx_file import OnnxModel
from robustcli.models.plugin import is_plugin, names_factory, run_plugin, split_plugin
from robustcli.models.recognise import recognise, told_by_names
from robustcli.models.request import Request
from robustcli.registry import models
from robustcli.store.latest import resolve_run
from robustcli.store.retention import candidates, resolve_checkpoint, step_name
from robustcli.store.snapshot import load_checkpoint
from robustcli.store.weights import CODE_FORMATS

Loader = Callable[[str, Request], nn.Module]
_TAGS = ("best", "last")
WEIGHT_FILES = (".safetensors", ".npz", *CODE_FORMATS)


def loader_of(reference: str, request: Request) -> tuple[Loader, str]:
    """The function that loads the reference, and what to give it: `request.plugin` may replace a name."""
    code = request.plugin is not None and names_factory(request.plugin)
    if request.arch is None and request.weights is None and not code:
        reference = meant_model(reference)
    if reference.startswith(GUARD):
        return from_guard, reference
    if reference.startswith(ONNX) or Path(reference).suffix.lower() == ".onnx":
        return from_onnx, reference
    if reference.startswith("run:") or Path(reference).is_dir():
        return from_run, reference
    if Path(reference).suffix.lower() in WEIGHT_FILES:
        return from_weight_file, reference
    if code:
        assert request.plugin is not None
        return from_factory, request.plugin
    return _builder_of(reference), reference


def from_run(reference: str, request: Request) -> NormalisedModel:
    """The network of a run's best checkpoint, else of its last, or of the one checkpoint that is named."""
    _check_whole(reference, request)
    path = checkpoint_of(resolve_run(Path(reference.removeprefix("run:"))))
    snapshot = load_checkpoint(path)
    if "model" not in snapshot.groups:
        raise CheckpointError("the checkpoint holds no model", where=str(path), code="E-CKPT-META")
    model = model_from_meta(snapshot.meta, plugin=request.plugin, where=str(path))
    fill(model, snapshot.groups["model"], str(path), strict_dtype=True)
    model.sha256 = snapshot.sha256
    return model


def from_guard(reference: str, request: Request) -> GuardedModel:
    """The guarded model that `guard fit` wrote into a directory."""
    _check_whole(reference, request)
    return open_guard(resolve_run(Path(reference.removeprefix(GUARD))), request.plugin)


def from_onnx(reference: str, request: Request) -> OnnxModel:
    """The black box in an ONNX file."""
    if request.weights is not None:
        raise UsageError(f"{reference} holds its weights", hint="drop --weights", code="E-MODEL")
    return OnnxModel(Path(reference.removeprefix(ONNX)).expanduser(), request.normalize)


def _check_whole(reference: str, request: Request) -> None:
    """Raises UsageError for weights or a normalisation beside a reference that has its own."""
    if request.weights is not None or request.normalize is not None:
        raise UsageError(
            f"{reference} holds its weights and its normalisation",
            hint="drop --normalize and weights",
            code="E-MODEL",
        )


def from_weight_file(reference: str, request: Request) -> nn.Module:
    """The network that `request` names (`arch` or a factory), filled from the file."""
    architecture = _architecture(reference, request)
    build = _builder_of(architecture)
    return build(architecture, replace(request, weights=reference))


def from_factory(reference: str, request: Request) -> nn.Module:
    """The user's network, with the weights of a file when there is one.

    It is fitted to the data when their shape is known, and can then be trained; else it is as the factory
    made it.
    """
    state, info = request.state(), request.data.info()
    _check_normalises_once(state, request)
    if info is not None:
        model: nn.Module = build_plugin(
            reference, request.params, info, seed=request.seed, normalize=request.normalize
        )
    else:
        classes = request.data.num_classes
        model = call_factory(reference, num_classes=classes, params=request.params, seed=request.seed)
    if state is not None:
        _fill(model, state, request)
    if info is None and request.normalize is not None:
        return normalised(model, request.normalize)
    return model


def from_name(reference: str, request: Request) -> NormalisedModel:
    """A registered, torchvision or timm network, with the weights of a file when there is one.

    The plugin's file runs first, since it may register the name.
    """
    state = request.state()
    if request.plugin is not None:
        _run_for(reference, request.plugin)
    if state is None:
        return _built(reference, None, request)
    _check_normalises_once(state, request)
    found = recognise(
        reference,
        state,
        request.params,
        where=str(request.weights),
        normalize=request.normalize,
        say=request.say,
    )
    try:
        usual = replace(request, params=found.params, normalize=request.normalize or found.normalize)
        model = _built(reference, found.tensors, usual)
        _fill(model, found.tensors, request, found.theirs)
    except (CheckpointError, UsageError) as error:
        told = told_by_names(state, reference)
        if found.recognised or not told:
            raise
        error.hint = f"the names in the file are those of {told}: write --model {told.partition(' ')[0]}"
        raise
    return model


def _built(reference: str, state: Mapping[str, Tensor] | None, request: Request) -> NormalisedModel:
    return build_model(
        reference,
        request.params,
        infer_info(reference, state, request.data, request.params, request.kind, request.download),
        seed=request.seed,
        normalize=request.normalize,
        download=request.download,
        filled=state is not None,
    )


def _fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    request: Request,
    named: Callable[[str], str] = str,
) -> None:
    """The tensors of the weight file that `request` names, into `model`."""
    fill(
        model,
        state,
        str(request.weights),
        strict_dtype=False,
        normalize=request.normalize,
        kind=request.kind,
        say=request.say,
        named=named,
    )


def _check_normalises_once(state: Mapping[str, Tensor] | None, request: Request) -> None:
    """Raises UsageError when weights of ours, which normalise inside, meet --normalize."""
    if state is not None and holds_normalisation(state) and request.normalize is not None:
        raise UsageError(f"{request.weights} normalises inside", hint="drop --normalize", code="E-MODEL")


def _run_for(name: str, plugin: str) -> None:
    """Runs a file without ``:factory``, which must register `name`: else it would make another network.

    Raises UsageError E-PLUGIN, naming the factories that the file defines.
    """
    before = models.get(name) if name in models else None
    run_plugin(split_plugin(plugin)[0])
    if name not in models or models.get(name) is before and not before.fn.__module__.startswith(MODULE):
        check_factory(plugin)


def _builder_of(reference: str) -> Loader:
    return from_factory if is_plugin(reference) else from_name


def _architecture(file: str, request: Request) -> str:
    """What builds the network for a bare weight file, which must exist and be the only one."""
    if not Path(file).exists():
        raise CheckpointError("no such weight file", where=file, code="E-CKPT-MISSING")
    if request.weights is not None:
        raise UsageError(f"two weight files: {file} and {request.weights}", hint="give one", code="E-MODEL")
    if request.arch is not None:
        return request.arch
    if request.plugin is not None and names_factory(request.plugin):
        return request.plugin
    named = _named_by(file, request)
    name = named.partition(" ")[0] or "NAME"
    hint = f"say which: --model {name} --weights {file}, or --plugin FILE.py:factory"
    if named:
        hint = f"its names are those of {named}: --model {name} --weights {file}"
    raise UsageError(f"{file} holds weights, not the network", hint=hint, code="E-MODEL")


def _named_by(file: str, request: Request) -> str:
    """The network whose names the file has, as `told_by_names` says it; empty where it may not be read."""
    try:
        return told_by_names(replace(request, weights=file).state() or {})
    except RobustCliError:
        return ""


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a run, its ``checkpoints``, a pointer to a checkpoint, or one itself stands for.

    A run stands for the checkpoint under ``best``; it has ``last`` only where there is no ``best``. A damaged
    checkpoint has no substitute. Raises CheckpointError.
    """
    if is_pointer(path):
        return resolve_checkpoint(path.parent, path.name)
    step = re.fullmatch(r"step-(\d{1,17})", path.name)
    if step and not path.is_dir():
        path = path.with_name(step_name(int(step[1])))
    if not path.is_dir():
        raise CheckpointError(f"no such run: {path}", hint=_there(path), code="E-CKPT-MISSING")
    if (path / "manifest.json").exists():
        return path
    inner = path / "checkpoints"
    root = inner if inner.is_dir() else path
    for tag in _TAGS:
        if os.path.lexists(root / tag):
            return resolve_checkpoint(root, tag)
    raise CheckpointError(
        "no checkpoint here",
        where=str(root),
        hint="name a run directory or one of its checkpoints",
        code="E-CKPT-MISSING",
    )


def is_pointer(path: Path) -> bool:
    """Whether this is ``best`` or ``last`` of a run, which leads to a checkpoint."""
    return path.name in _TAGS and path.is_file()


def _there(path: Path) -> str:
    """What stands where a checkpoint or a run was looked for."""
    root = path.parent if path.parent.name == "checkpoints" else path.parent / "checkpoints"
    steps = [step.name for step in candidates(root)]
    if not steps:
        return "a run is a directory with checkpoints/ in it"
    return f"there are {', '.join(steps[:5])} in {root}"
