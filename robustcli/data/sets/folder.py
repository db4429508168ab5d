"""`folder:PATH`: images in <split>/<class>/, or in <class>/ with a seeded split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_classes
from robustcli.data.datasets import source_path
from robustcli.data.files import Listing
from robustcli.data.images import Decoder
from robustcli.data.layout.classes import chosen_order, stated_classes
from robustcli.data.layout.places import find_places
from robustcli.data.layout.tree import class_folders, labels_table, list_images, list_table, table_classes
from robustcli.data.layout.words import order_note
from robustcli.data.listings import bundle_listings
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

Listers = dict[str, Callable[[], Listing]]


@datasets.register("folder", path=True)
def folder(config: DataConfig) -> DataBundle:
    """Images of PATH/{train,val,test}/<class>/, or of PATH/<class>/, split by seed.

    The classes are the names of the class folders, sorted: as numbers where all are integers.
    """
    root = source_path(config)
    if not root.is_dir():
        raise DataError(
            "no such folder",
            where=str(root),
            hint="folder:PATH needs PATH/<split>/<class>/<image> or PATH/<class>/<image>",
        )
    return bundle_folder(config, "folder", root, name=printable(f"folder:{root.resolve().name}"))


def bundle_folder(
    config: DataConfig, entry: str, root: Path, *, name: str, size: int | None = None, ratio: float = 1.0
) -> DataBundle:
    """Find the splits and classes under `root` and build the bundle.

    Args:
        config, entry, name: as in `DataBundle`.
        root: the folder.
        size: side of the images in pixels when data.size is null.
        ratio: as in `Decoder`.
    """
    decoder = Decoder.of(config, str(root), size=size, ratio=ratio)
    listers, classes, notes = find_splits(root, config, decoder.roots)
    return bundle_listings(config, entry, decoder, listers, classes, name=name, notes=notes)


def find_splits(
    root: Path, config: DataConfig, roots: tuple[str, ...]
) -> tuple[Listers, tuple[str, ...], list[str]]:
    """Stored split -> a function that lists it, the classes in their order, and notes.

    Raises:
        DataError: what `find_places` refuses; a split with other classes than the training images.
    """
    stated = stated_classes(config)
    places = find_places(root, config, roots, stated)
    tables = {place: labels_table(root / place) for place in places.folders.values() if place}
    found = {
        part: _class_names(root, place, tables.get(place), roots) for part, place in places.folders.items()
    }
    names = found.get("train") or sorted(set().union(*found.values()))
    classes = chosen_order(stated, names, where=str(root))
    for part, own in found.items():
        if set(own) - set(classes):
            check_classes(classes, own, where=f"{root}: {part}")
    listers: Listers = {
        part: partial(_listed, root, place, tables.get(place), classes, roots)
        for part, place in places.folders.items()
    }
    return listers, classes, [*places.notes, *order_note(classes)]


def _class_names(root: Path, place: str, table: Path | None, roots: tuple[str, ...]) -> list[str]:
    return class_folders(root, place, roots) if table is None else table_classes(table)


def _listed(
    root: Path, place: str, table: Path | None, classes: tuple[str, ...], roots: tuple[str, ...]
) -> Listing:
    if table is None:
        return list_images(root, place, classes, roots)
    return list_table(root, place, table, classes)
