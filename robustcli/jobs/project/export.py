"""`robustcli export`: a network as files that other programs run, normalisation inside, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import __version__
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.samples import choose, split_of
from robustcli.assembly.setting import prepare_to_measure
from robustcli.assembly.sources import sources_of
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.config.spec import COMMAND, ONNX
from robustcli.core.types import declares_draws, reject_of
from robustcli.core.untouched import as_before
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import check_model_output, state_digest
from robustcli.jobs.project.formats import IMAGES, LOGITS, Exported, as_onnx, as_torch, pictures, subject_of
from robustcli.models.contract.adapted import adapted
from robustcli.models.normalised import NormalisedModel
from robustcli.models.source import load_model
from robustcli.records.document import Document
from robustcli.registry import suggestion
from robustcli.store.atomic import write_atomic, write_json
from robustcli.store.disk import explained
from robustcli.store.sources import check_apart
from robustcli.terminal.console import Console

FORMATS: dict[str, Callable[..., Exported]] = {"torch": as_torch, "onnx": as_onnx}
FILES, METADATA = ("model.pt2", "model.onnx"), "model.json"
_IMAGES = 8  # of the data, beside the pictures that we make
_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ExportFlags:
    """Flags of `export`.

    Args:
        out: the folder. overwrite: whether files of an earlier export there are replaced.
        formats: names in `FORMATS`.
        shape: (C, H, W) and classes: K, of a network that does not say them; None where it does.
        with_data: whether the user named data: their shape, their classes and some of their images count.
        plugin, allow_pickle: as for all verbs.
    """

    out: str
    formats: tuple[str, ...] = ("torch",)
    shape: _Shape | None = None
    classes: int | None = None
    with_data: bool = False
    overwrite: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Opened:
    """A network that can be exported. shape: of an image, (C, H, W). names: of its classes, where known."""

    model: nn.Module
    shape: _Shape
    classes: int
    names: tuple[str, ...] | None
    images: Tensor | None = None


def export(loaded: Loaded, console: Console, flags: ExportFlags) -> dict[str, Any]:
    """Write the model and what its users must know; returns the `export` document.

    Raises:
        UsageError: a guard, a randomised model, a black box, a file that is there, an unknown format.
        ConfigError: the network cannot be exported. NumericsError E-EXPORT: a file answers differently; then
        nothing is written. ResourceError: the extra `onnx` is missing, or the disk refuses.
    """
    document = Document("export")
    config = loaded.config.model_copy(update={"device": "cpu"})
    folder = _folder(config, flags)
    opened = _opened(config, console, flags)
    with as_before(opened.model):
        written = _exported(opened, flags, console)
    facts = _metadata(config, opened, written, document)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in {*FILES, METADATA} - {file.name for file in written}:
            (folder / name).unlink(missing_ok=True)  # of an earlier export
    for file in written:
        write_atomic(folder / file.name, file.data)
    write_json(folder / METADATA, facts)
    for file in written:
        console.info(
            f"{file.name}: differs from the network by {file.difference:.2g} at most, {file.allowed:.2g} is "
            f"allowed, run by {file.checked_by}"
        )
    console.result(str(folder))
    return document.finish(None, {"out": str(folder), "metadata": str(folder / METADATA), **facts})


def _folder(config: Config, flags: ExportFlags) -> Path:
    """The folder. Raises UsageError for unknown formats, and where files would be lost."""
    for name in flags.formats:
        if name not in FORMATS:
            hint = f"{suggestion(name, list(FORMATS))}known: {', '.join(FORMATS)}"
            raise UsageError(f"unknown format {name!r}", where="--format", hint=hint)
    out = Path(flags.out).expanduser()
    check_apart(out, sources_of(config, flags.plugin))
    if out.exists() and not out.is_dir():
        raise UsageError("--out is a file", where=str(out), hint="name a directory")
    there = [name for name in (*FILES, METADATA) if (out / name).exists()]
    if there and not flags.overwrite:
        hint = "choose another --out, or add --overwrite"
        raise UsageError(f"{out / there[0]} is there already", where="--out", hint=hint)
    return out


def _opened(config: Config, console: Console, flags: ExportFlags) -> Opened:
    """The network, refused where its file would not be the model that was measured."""
    if config.model.name.startswith("guard:") or config.defences:
        raise UsageError(
            "a guarded model is not exported: its file could reject, but would keep no evidence",
            where="model",
            hint="export the network that stands behind the guard, and deploy the guard with `guard serve`",
            code="E-MODEL",
        )
    if config.model.name.startswith((COMMAND, ONNX)):
        raise UsageError(
            f"{config.model.name} is a black box, and only a network can be written as a file",
            where="model",
            hint="export the network that stands behind it",
            code="E-MODEL",
        )
    with torch.device("cpu"):
        opened = _with_data(config, console, flags) if flags.with_data else _alone(config, console, flags)
    points = pictures(opened.shape)
    model, classes = adapted(opened.model.eval(), points)
    if reject_of(model) is not None or _random(model, points):
        raise UsageError(
            "the model answers differently each time, and a file would hold one draw of it",
            where="model",
            hint="export the network without its draws",
            code="E-MODEL",
        )
    return replace(opened, model=model, classes=classes)


def _random(model: nn.Module, points: Tensor) -> bool:
    """Whether two passes over the same images differ."""
    if declares_draws(model):
        return True
    with as_before(model), torch.no_grad():
        answers = [model(points.clone()) for _ in range(2)]
    return any(alarm.name == "random-forward" for alarm in check_model_output(*answers))


def _with_data(config: Config, console: Console, flags: ExportFlags) -> Opened:
    """The network for the data that the user named, and some of their images."""
    models = (config.model.name, config.model.weights)
    setting = prepare_to_measure(config, console, models, dry_run=True, union=True)  # a file has no ball
    model = ModelSource.of(setting, flags).bare(console)
    split = split_of(setting.data, config.eval.split)
    chosen = choose(split, n=min(_IMAGES, len(split)), first=None, seed=config.seed)
    images = torch.cat([x for x, _, _ in split.stream([chosen], torch.device("cpu"))])
    return Opened(model, setting.data.shape, setting.classes, tuple(setting.data.classes), images)


def _alone(config: Config, console: Console, flags: ExportFlags) -> Opened:
    """The network as it says itself what it takes. Raises UsageError where nobody says it."""
    spec = config.model
    if flags.plugin is None and not spec.is_reference and spec.weights is None:
        raise UsageError(
            f"model {spec.name} has no weights", hint="say which: --model run:DIR, or --weights FILE"
        )
    channels, size = (None, None) if flags.shape is None else flags.shape[:2]
    model = load_model(
        spec.name,
        params=spec.params,
        weights=spec.weights,
        plugin=flags.plugin,
        num_classes=flags.classes,
        channels=channels,
        size=size,
        normalize=spec.normalize,
        allow_pickle=flags.allow_pickle,
        download=config.data.download,
        seed=config.seed,
        weights_kind=spec.weights_kind,
        say=console.warn,
    )
    shape = flags.shape or getattr(getattr(model, "info", None), "shape", None)
    if shape is None:
        code = flags.plugin or spec.name
        raise UsageError(
            f"which images does {code} take?",
            where="model",
            hint="add --shape 3x32x32, or --data",
            code="E-MODEL",
        )
    return Opened(model, shape, flags.classes or 0, getattr(model, "classes", None))


def _exported(opened: Opened, flags: ExportFlags, console: Console) -> list[Exported]:
    """All files in memory, each compared with the network."""
    points = pictures(opened.shape)
    if opened.images is not None:
        points = torch.cat((points, opened.images))
    subject = subject_of(opened.model, points)
    if not subject.dynamic:
        console.warn("the network fixes the size of its batch: the files take one image at a time")
    return [FORMATS[name](subject) for name in flags.formats]


def _metadata(config: Config, opened: Opened, written: list[Exported], document: Document) -> dict[str, Any]:
    """What model.json says."""
    batch = "batch" if all(file.facts["dynamic_batch"] for file in written) else 1
    versions = {"robustcli": __version__, "torch": torch.__version__}
    return {
        "schema_version": 1,
        "model": config.model.label,
        "input": {
            "name": IMAGES,
            "type": "float32",
            "shape": [batch, *opened.shape],
            "range": [0.0, 1.0],
        },
        "output": {"name": LOGITS, "type": "float32", "shape": [batch, opened.classes]},
        "classes": None if opened.names is None else list(opened.names),
        "normalisation": _normalisation(opened.model),
        "weights_sha256": state_digest(opened.model),
        "producer": versions,
        "files": {file.name: _described(file) for file in written},
    }


def _normalisation(model: nn.Module) -> dict[str, Any]:
    """That pixels are normalised inside the file, and how where that is known."""
    if not isinstance(model, NormalisedModel):
        return {"inside": True, "mean": None, "std": None}
    return {"inside": True, "mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}


def _described(file: Exported) -> dict[str, Any]:
    return {
        "sha256": hashlib.sha256(file.data).hexdigest(),
        "bytes": len(file.data),
        "difference": file.difference,
        "allowed": file.allowed,
        "checked_by": file.checked_by,
        **file.facts,
    }
