"""Which folder of a data set is which split. What the names leave open is an error, never a guess."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.files import entries, folders, is_image
from robustcli.data.layout.tree import IMAGES, labels_table
from robustcli.data.layout.words import part_inside, part_named
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable


@dataclass(frozen=True)
class Places:
    """folders: stored split -> its folder; {train: ""} where the folders of the root are the classes.

    notes: what was left aside.
    """

    folders: dict[str, str]
    notes: list[str]


def find_places(
    root: Path, config: DataConfig, roots: Sequence[str], classes: Sequence[str] | None
) -> Places:
    """The folder of each split: as `data.splits` says, else by its name.

    A folder that is named as a split is one when it holds folders. Where none does, or `data.classes` names
    all of them, the folders of the root are the classes of one split, train. A folder `images` between a
    split and its classes is no class.

    classes: the names in `data.classes`, see `stated_classes`.

    Raises:
        DataError: two folders for one split; splits of images without class folders; a folder whose classes
            are those of train, and whose name says no split; a mixture of splits and classes; a folder in
            `data.splits` that is not there.
    """
    names = folders(root, roots)
    stated = _stated(root, config)
    shown = [name for name in names if name not in config.splits.ignore]
    by_name = _by_name(root, shown, stated, roots)
    if not stated and (
        _are_classes(shown, classes) or not any(folders(root / name, roots) for name in by_name)
    ):
        _refuse_bare(root, shown, classes)
        if classes is None:
            _refuse_levels(root, shown, roots)
        return Places({"train": ""}, _left_aside(config.splits.ignore, names))
    places = dict(stated)
    for name, part in by_name.items():
        if part in stated:
            continue
        if part in places:
            raise _two_folders(root, part, places[part], name)
        places[part] = name
    others = [name for name in shown if name not in _tops(places) and name not in by_name]
    places = {part: _below_images(root, place, roots) for part, place in places.items()}
    _refuse_unclear(root, places, others, roots)
    places, unlabelled = _with_labels(root, places, roots)
    unused = [name for name in names if name not in {*_tops(places), *unlabelled}]
    notes = [f"{name}: images without labels, left aside" for name in unlabelled]
    return Places(
        {part: places[part] for part in PARTS if part in places}, _left_aside(unused, names) + notes
    )


def _by_name(
    root: Path, shown: Sequence[str], stated: dict[str, str], roots: Sequence[str]
) -> dict[str, str]:
    """Folder -> the split that its name says.

    A word inside a name (`images_train`) counts only where all folders have one, each another one, and hold
    folders of the same names: a class may be called train_station.
    """
    by_word = {name: part for name in shown if (part := part_inside(name)) is not None}
    if not stated and len(shown) > 1 and len(by_word) == len(set(by_word.values())) == len(shown):
        inner = [below for name in shown if (below := set(folders(root / name, roots)))]
        if inner and set.intersection(*inner):
            return by_word
    free = [name for name in shown if name not in stated.values()]
    return {name: part for name in free if (part := part_named(name)) is not None}


def _are_classes(shown: Sequence[str], classes: Sequence[str] | None) -> bool:
    """Whether `data.classes` names all these folders."""
    return classes is not None and bool(shown) and set(shown) <= set(classes)


def _tops(places: dict[str, str]) -> set[str]:
    """The folders of the root in which the splits lie."""
    return {place.split(os.sep)[0] for place in places.values()}


def _below_images(root: Path, place: str, roots: Sequence[str]) -> str:
    """`place/images` where that is the only folder of a split and holds folders alone, else `place`."""
    names, deeper = folders(root / place, roots), os.path.join(place, IMAGES)
    if names != [IMAGES] or labels_table(root / place) is not None:
        return place
    if _has_images(root / deeper) or not folders(root / deeper, roots):
        return place
    return deeper


def _stated(root: Path, config: DataConfig) -> dict[str, str]:
    """Split -> its folder, of `data.splits`."""
    stated = {}
    for part in PARTS:
        given = getattr(config.splits, part)
        if given is None:
            continue
        name = os.path.normpath(given)
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
    if labels_table(folder) is not None or below not in ([], [IMAGES]):
        return False
    return _has_images(folder / below[0] if below else folder)


def _refuse_bare(root: Path, names: Sequence[str], classes: Sequence[str] | None) -> None:
    """Refuse folders of images that are named as several splits: they are hardly classes."""
    by_name = {name: part for name in names if (part := part_named(name)) is not None}
    by_word = {name: part for name in names if (part := part_inside(name)) is not None}
    named = by_word if len(by_word) == len(names) else by_name
    if _are_classes(names, classes) or len(set(named.values())) < 2:
        return
    if any(_has_images(root / name) for name in named):
        listed = ", ".join(named)
        raise DataError(
            f"images without labels: {listed} are named as splits and have no class folders",
            where=str(root),
            hint="put the images into SPLIT/CLASS/, or name them and their classes in a table, csv:PATH; "
            f"if these are the classes: data.classes=[{','.join(names)}]",
            code="E-SPLIT",
        )


def _refuse_levels(root: Path, names: Sequence[str], roots: Sequence[str]) -> None:
    """Refuse folders that all hold the same folders: either level may be that of the classes."""
    if len(names) < 2:
        return
    below = set(folders(root / names[0], roots))
    for name in names[1:]:
        below &= set(folders(root / name, roots)) if below else set()
    if len(below) > 1:
        first, second = names[:2]
        more = ",…" if len(names) > 2 else ""
        train, test = _as_splits(names)
        raise DataError(
            f"{first} and {second} both hold the folders {', '.join(sorted(below)[:3])}: "
            "which of them are the classes?",
            where=str(root),
            hint=f"data.classes=[{first},{second}{more}] for the outer ones, or "
            f"data.splits.train={train} data.splits.test={test} for the inner ones",
            code="E-SPLIT",
        )


def _as_splits(names: Sequence[str]) -> tuple[str, str]:
    """The two folders that look most like train and test: by a word in the name, else the first ones."""
    train = min(names, key=lambda name: _rank(name, "train"))
    rest = [name for name in names if name != train]
    return train, min(rest, key=lambda name: _rank(name, "test"))


def _rank(name: str, wanted: str) -> int:
    """0 for a name that says the wanted split, 1 for one that says none, 2 for one that says another."""
    part = part_inside(name)
    if part is None:
        return 1
    return 2 * (part != wanted)
