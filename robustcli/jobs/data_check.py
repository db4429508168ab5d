"""`robustcli data check`: what a data set is, before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.extra import extra_split
from robustcli.data.looks import SplitLooks, Twins, look_at, twins
from robustcli.errors import RobustCliError
from robustcli.jobs.evidence.leakage import look
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell
from robustcli.reporting.tables import Table
from robustcli.runtime.signals import heed
from robustcli.terminal.console import Console

_SHOWN = 20  # unreadable files and pairs of twins that a table lists
_USES = {"a training": ("train", "val"), "an evaluation": ("test",)}


def data_check(config: DataConfig, console: Console) -> dict[str, Any]:
    """Read all images of the data set; returns the `data check` document.

    `problems` lists what a training and an evaluation would fail with. Raises DataError where not even the
    splits and classes can be told.
    """
    document = Document("data check")
    if config.storage == "cached":
        config = config.model_copy(update={"storage": "stream"})
    bundle = load_data(config, parts=())
    stored = bundle.stored
    with console.progress(None, f"reading {bundle.name}"):
        splits = {name: look_at(stored, name) for name in stored.names}
    same = twins(splits)
    used, notes, warnings, problems = _tried(config)
    notes = list(dict.fromkeys([*bundle.notes, *notes]))
    leakage = _leakage(config, console, problems)
    _show(console, bundle, splits, same)
    for line in notes:
        console.info(line)
    for line in warnings:
        console.warn(line)
    return document.finish(
        None,
        {
            "data": bundle.name,
            "classes": list(bundle.classes),
            "splits": {name: _described(looks, bundle.classes) for name, looks in splits.items()},
            "used": used,
            "same_images": _counted(same),
            **leakage,
            "notes": notes,
            "warnings": warnings,
            "problems": problems,
        },
    )


def _tried(config: DataConfig) -> tuple[dict[str, int], list[str], list[str], list[dict[str, Any]]]:
    """(sizes of train, val and test, notes, warnings, problems) of what the verbs would load."""
    used: dict[str, int] = {}
    notes: list[str] = []
    warnings: list[str] = []
    problems: list[dict[str, Any]] = []
    for use, parts in _USES.items():
        bundle = load_data(config, parts=())
        try:
            bundle.need(parts)
        except RobustCliError as error:
            problems.append(_problem(use, error))
            continue
        used |= {part: len(getattr(bundle, part)) for part in parts}
        notes += bundle.notes
        warnings += bundle.warnings
    return used, notes, list(dict.fromkeys(warnings)), problems


def _leakage(config: DataConfig, console: Console, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """{leakage: …}: test images among those of data.extra, by their pixels; {} where nothing is compared."""
    if config.extra is None or problems:
        return {}
    bundle = load_data(config)
    try:
        extra = extra_split(config.extra, bundle, config)
    except RobustCliError as error:
        problems.append(_problem("data.extra", error))
        return {}
    told, _ = look(bundle, extra, torch.device("cpu"), console, None, heed)
    return {"leakage": told}


def _problem(use: str, error: RobustCliError) -> dict[str, Any]:
    message = "; ".join(text for text in (error.what, error.where) if text)
    return {"for": use, "code": error.code, "exit": error.exit_code, "message": message, "hint": error.hint}


def _described(looks: SplitLooks, classes: Sequence[str]) -> dict[str, Any]:
    """One stored split as JSON."""
    counts = torch.bincount(looks.labels, minlength=len(classes)).tolist()
    return {
        "images": len(looks.labels),
        "counts": dict(zip(classes, counts, strict=True)),
        "sizes": dict(looks.sizes()),
        "depths": dict(looks.depths()),
        "unreadable": [{"file": error.where, "message": error.what} for error in looks.faults],
    }


def _counted(same: Sequence[Twins]) -> dict[str, Any]:
    """How many pictures are in two places, and the first of them."""
    kinds = Counter(pair.kind for pair in same)
    return {
        "in_two_splits": kinds["in two splits"],
        "under_two_labels": kinds["under two labels"],
        "twice_in_one_split": kinds["twice in one split"],
        "examples": [{"kind": pair.kind, "where": pair.where[:5]} for pair in same[:_SHOWN]],
    }


def _show(
    console: Console, bundle: DataBundle, splits: Mapping[str, SplitLooks], same: Sequence[Twins]
) -> None:
    """The tables: splits, classes, unreadable files, the same picture in two places."""
    rows: list[list[Cell]] = [
        [name, len(looks.labels), *_cells(looks), len(looks.faults)] for name, looks in splits.items()
    ]
    console.table(Table(bundle.name, ["stored split", "images", "sizes", "depth", "unreadable"], rows))
    counts = {
        name: torch.bincount(looks.labels, minlength=bundle.num_classes).tolist()
        for name, looks in splits.items()
    }
    by_class: list[list[Cell]] = [
        [label, name, *(count[label] for count in counts.values())]
        for label, name in enumerate(bundle.classes)
    ]
    console.table(Table("classes", ["label", "class", *counts], by_class))
    faults = [error for looks in splits.values() for error in looks.faults]
    if faults:
        listed = [[error.where, error.what] for error in faults[:_SHOWN]]
        console.table(Table("unreadable files", ["file", "why"], listed, _more(len(faults))))
    if same:
        pairs = [[pair.kind, ", ".join(pair.where[:3])] for pair in same[:_SHOWN]]
        title = "the same picture (equal decoded pixels)"
        console.table(Table(title, ["found", "files"], pairs, _more(len(same))))


def _cells(looks: SplitLooks) -> list[str]:
    """The commonest sizes and depths."""
    return [_commonest(looks.sizes()), _commonest(looks.depths())]


def _commonest(counts: Counter[str]) -> str:
    listed = [f"{what} ({count})" if len(counts) > 1 else what for what, count in counts.most_common(3)]
    return ", ".join(listed) + (" …" if len(counts) > 3 else "")


def _more(count: int) -> str:
    return f"and {count - _SHOWN} more" if count > _SHOWN else ""
