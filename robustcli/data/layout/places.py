"""Which folder of a data set is which split. What the names leave open is an error, never a guess."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.files import entries, folders, is_image
from robustcli.data.layout.tree import labels_table
from robustcli.data.layout.words import part_named
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable


@dataclass(frozen=True)
class Places:
    """folders: stored split -> its folder; {train: ""} where the folders of the root are the classes.

    notes: what was left aside.
    """

    folders: dict[str, str]
    notes: list[str]


def find_places(root: Path, config: DataConfig, roots: Sequence[str]) -> Places:
    """The folder of each split: as `data.splits` says, else by its name.

    A folder that is named as a split is one when it holds folders. Where none does, the folders of the root
    are the classes of one split, train.

    Raises:
        DataError: two folders for one split; a folder whose classes are those of train, and whose name says
            no split; a mixture of splits and classes; a folder in `data.splits` that is not there.
    """
    names = folders(root, roots)
    stated = _stated(root, config)
    shown = [name for name in names if name not in config.splits.ignore]
    named = {name: part_named(name) for name in shown if name not in stated.values()}
    by_name = {name: part for name, part in named.items() if part is not None}
    if not stated and not any(folders(root / name, roots) for name in by_name):
        _refuse_levels(root, shown, config, roots)
        return Places({"train": ""}, _left_aside(config.splits.ignore, names))
    places = dict(stated)
    for name, part in by_name.items():
        if part in config_parts(config):
            continue
        if part in places:
            raise _two_folders(root, part, places[part], name)
        places[part] = name
    others = [name for name in shown if name not in places.values() and name not in by_name]
    _refuse_unclear(root, places, others, roots)
    places, unlabelled = _with_labels(root, places, roots)
    unused = [name for name in names if name not in places.values() and name not in unlabelled]
    notes = [f"{name}: images without labels, left aside" for name in unlabelled]
    return Places(
        {part: places[part] for part in PARTS if part in places}, _left_aside(unused, names) + notes
    )


def config_parts(config: DataConfig) -> list[str]:
    """The splits whose folder `data.splits` names."""
    return [part for part in PARTS if getattr(config.splits, part) is not None]


def _stated(root: Path, config: DataConfig) -> dict[str, str]:
    """Split -> its folder, of `data.splits`."""
    stated = {}
    for part in config_parts(config):
        name = os.path.normpath(getattr(config.splits, part))
        outside = os.path.isabs(name) or name.split(os.sep)[0] == os.pardir
        if outside or not (root / name).is_dir():
            hint = "name a folder inside the data folder"
            raise DataError(
                f"data.splits.{part}: no folder {name!r}", where=str(root), hint=hint, code="E-FILE"
            )
        stated[part] = name
    return stated


def _left_aside(unused: Sequence[str], names: Sequence[str]) -> list[str]:
    found = [name for name in unused if name in names]
    if not found:
        return []
    return [printable(f"folders left aside: {', '.join(found)}")]


def _two_folders(root: Path, part: str, first: str, second: str) -> DataError:
    what = f"two folders for one split, {part}: {first}, {second}"
    hint = f"say which one: data.splits.{part}={first} or data.splits.{part}={second}"
    return DataError(what, where=str(root), hint=hint, code="E-SPLIT")


def _refuse_unclear(root: Path, places: dict[str, str], others: Sequence[str], roots: Sequence[str]) -> None:
    """Refuse a folder beside the splits that may be a split, or a class, itself."""
    known = {name for place in places.values() for name in folders(root / place, roots)}
    for name in others:
        if known & set(folders(root / name, roots)):
            raise DataError(
                f"{name!r} has the class folders of {', '.join(places.values())}, and no name of a split",
                where=str(root),
                hint=f"say what it is: data.splits.test={name}, data.splits.val={name}, "
                f"or data.splits.ignore=[{name}]",
                code="E-SPLIT",
            )
        if "train" not in places and _has_images(root / name):
            raise DataError(
                f"{name!r} has images, and lies beside the split {', '.join(places.values())}",
                where=str(root),
                hint=f"put class folders into splits, or leave it out: data.splits.ignore=[{name}]",
                code="E-SPLIT",
            )


def _has_images(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in entries(folder))


def _with_labels(
    root: Path, places: dict[str, str], roots: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """The splits whose images have labels, and the folders of those that have none.

    A test without labels is left aside where a val has some, as in Tiny-ImageNet; else it is an error, for
    another test would be drawn in its place.
    """
    bare = {
        part: name for part, name in places.items() if part != "train" and _unlabelled(root / name, roots)
    }
    if not bare:
        return places, []
    kept = {part: name for part, name in places.items() if part not in bare}
    if "val" in bare or not {"val", "test"} & set(kept):
        name = next(iter(bare.values()))
        what = f"the images in {name!r} have no labels: no class folders"
        hint = (
            f"put them into class folders, or their labels into {name}/{name.lower()}_annotations.txt "
            f"(FILE, tab, CLASS) beside {name}/images, or leave them out: data.splits.ignore=[{name}]"
        )
        raise DataError(what, where=str(root), hint=hint, code="E-SPLIT")
    return kept, list(bare.values())


def _unlabelled(folder: Path, roots: Sequence[str]) -> bool:
    """Whether a split has images and neither class folders nor a table of labels."""
    below = folders(folder, roots)
    if labels_table(folder) is not None or below not in ([], ["images"]):
        return False
    return _has_images(folder / below[0] if below else folder)


def _refuse_levels(root: Path, names: Sequence[str], config: DataConfig, roots: Sequence[str]) -> None:
    """Refuse folders that all hold the same folders: either level may be that of the classes."""
    if config.classes is not None or len(names) < 2:
        return
    below = set(folders(root / names[0], roots))
    for name in names[1:]:
        below &= set(folders(root / name, roots)) if below else set()
    if len(below) > 1:
        first, second = names[:2]
        more = ",…" if len(names) > 2 else ""
        raise DataError(
            f"{first} and {second} both hold the folders {', '.join(sorted(below)[:3])}: "
            "which of them are the classes?",
            where=str(root),
            hint=f"data.classes=[{first},{second}{more}] for the outer ones, or "
            f"data.splits.train={first} data.splits.test={second} for the inner ones",
            code="E-SPLIT",
        )
