"""What a model's checkpoints say of their data: the order of the classes, and what was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustcli.assembly.members import members_of
from robustcli.config.schema import Config
from robustcli.config.sections import DataConfig
from robustcli.config.spec import GUARD
from robustcli.errors import RobustCliError
from robustcli.models.guard_file import read_guard
from robustcli.models.references import checkpoint_of, is_pointer
from robustcli.registry import datasets
from robustcli.store.latest import resolve_run
from robustcli.store.manifest import read

_LONGEST = 16  # runs that were fine-tuned one from the other
Meta = Mapping[str, Any]


def begins_with(config: Config) -> tuple[str | None, ...]:
    """What names the models of a configuration and their weights: the references of which `lineage` asks."""
    return config.model.name, config.model.weights, *members_of(config)


def lineage(references: Iterable[str | None]) -> list[Meta]:
    """What the checkpoints of our runs say of themselves: those named first, then those they began with.

    Args:
        references: of models and weight files. What is no run of ours says nothing.
    """
    metas: list[Meta] = []
    waiting = [reference for reference in references if reference]
    while waiting and len(metas) < _LONGEST:
        meta = _meta(waiting.pop(0))
        if meta is not None:
            metas.append(meta)
            model = _below(meta, "config", "model")
            waiting += [name for name in (model.get("name"), model.get("weights")) if isinstance(name, str)]
    return metas


def class_order(metas: Iterable[Meta]) -> tuple[str, ...]:
    """The class names of the first checkpoint that has some; () when none has."""
    for meta in metas:
        names = meta.get("classes")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def trained_on(metas: Iterable[Meta], data: DataConfig, digest: str) -> bool:
    """Whether one of these checkpoints was trained on the data: by their path, or by their digest."""
    for meta in metas:
        config, stored = _below(meta, "config", "data"), _below(meta, "data").get("digest")
        names = [name for name in (config.get("name"), config.get("extra")) if isinstance(name, str)]
        if any(_same(name, data.name) for name in names):
            return True
        if isinstance(stored, str) and digest in stored.split("+"):
            return True
    return False


def _same(first: str, second: str) -> bool:
    """Whether two names mean one data set."""
    return _place(first) == _place(second)


def _place(text: str) -> str:
    name, _, path = text.partition(":")
    if not path or name not in datasets:
        return text
    return f"{name}:{os.path.realpath(os.path.expanduser(path))}"


def _below(meta: Meta, *keys: str) -> Meta:
    """The map at these keys; empty when there is none."""
    value: Any = meta
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _meta(reference: str) -> Meta | None:
    """What the checkpoint of a reference says; None for what is no readable checkpoint of ours.

    Whoever loads the model reports what is wrong with it.
    """
    try:
        if reference.startswith(GUARD):
            guard, _ = read_guard(resolve_run(Path(reference.removeprefix(GUARD))))
            return {**guard.provenance, "classes": guard.classes}
        path = resolve_run(Path(reference.removeprefix("run:")))
        is_weight_file = path.is_file() and not is_pointer(path)
        return read(checkpoint_of(path.parent if is_weight_file else path)).meta
    except (RobustCliError, OSError, ValueError):
        return None
