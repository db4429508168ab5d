"""`folder:PATH`: images in <split>/<class>/, or in <class>/ with a seeded split."""

from __future__ import annotations

from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_classes
from robustcli.data.datasets import source_path
from robustcli.data.files import Listing, folders, list_images
from robustcli.data.images import Decoder
from robustcli.data.listings import bundle_listings
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@datasets.register("folder", path=True)
def folder(config: DataConfig) -> DataBundle:
    """Images of PATH/{train,val,test}/<class>/, or of PATH/<class>/, split by seed.

    The classes are the sorted names of the class folders.
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
    """List the images under `root` and build the bundle.

    Args:
        config, entry, name: as in `bundle.build`.
        root: the folder.
        size: side of the images in pixels when data.size is null.
        ratio: as in `Decoder`.
    """
    listings, notes = list_splits(root)
    decoder = Decoder(str(root), config.size or size, ratio)
    return bundle_listings(config, entry, decoder, listings, name=name, notes=notes)


def list_splits(root: Path) -> tuple[dict[str, Listing], list[str]]:
    """The listing of each stored split, and notes.

    Folders that are not named after splits are classes, and their images are one split, train.
    """
    names = folders(root, root)
    places = _split_folders(names, root)
    listings = {part: list_images(root, places[part]) for part in PARTS if part in places}
    first, *others = listings.items()
    for part, listing in others:
        check_classes(first[1].classes, listing.classes, where=f"{root}: {part}", against=first[0])
    notes = []
    ignored = sum(listing.ignored for listing in listings.values())
    if ignored:
        notes.append(f"{ignored} files that are not images left aside")
    unused = [name for name in names if name not in places.values()]
    if unused and "" not in places.values():
        notes.append(printable(f"folders left aside: {', '.join(unused)}"))
    return listings, notes


def _split_folders(names: list[str], root: Path) -> dict[str, str]:
    """Stored split -> its folder, one of `names`; {train: ""} when these are the classes of one split."""
    split_names = [name for name in names if name in _NAMES]
    places = {_NAMES[name]: name for name in split_names}
    if not names or not ("train" in places or len(split_names) == len(names)):
        return {"train": ""}
    if len(places) < len(split_names):
        raise DataError(
            f"two folders for one split: {', '.join(split_names)}",
            where=str(root),
            hint="keep one of train, val, test each",
        )
    if set(places) == {"val", "test"}:
        raise DataError(
            "no train folder",
            where=str(root),
            hint=f"found {', '.join(split_names)}; add train, or name one of them as folder:PATH/NAME",
        )
    return places
