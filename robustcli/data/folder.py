"""`folder:PATH`: images in <split>/<class>/, or in <class>/ with a seeded split; in memory when they are small, else streamed; or decoded once into a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle, build, cpu_count, digest_memory
from robustcli.data.cache import cache_folder, load
from robustcli.data.check import check_classes, check_shape
from robustcli.data.datasets import source_path
from robustcli.data.decoded import Source
from robustcli.data.files import Listing, folders, list_images
from robustcli.data.images import Decoder, decode_all, each, first_shape, planes
from robustcli.data.split import MemorySplit, Split, Store
from robustcli.data.stream import StreamSplit
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
MEMORY_BYTES = 2 * 2**30  # above this many bytes of pixels, `storage: auto` streams
_PROBES = 64  # images decoded to tell grey from colour before streaming
Faults = Mapping[str, Mapping[int, DataError]]


@datasets.register("folder", path=True)
def folder(config: DataConfig) -> DataBundle:
    """Images of PATH/{train,val,test}/<class>/, or PATH/<class>/ split by seed; classes are the sorted folder names."""
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
    """List the images under `root` and build; `size` (pixels) holds when data.size says none, `ratio` as in `Decoder`."""
    listings, notes = _list(root)
    decoder = Decoder(str(root), config.size if config.size is not None else size, ratio)
    return bundle_listings(config, entry, decoder, listings, name=name, notes=notes)


def bundle_listings(
    config: DataConfig, entry: str, decoder: Decoder, listings: Mapping[str, Listing], *, name: str, notes: Sequence[str] = ()
) -> DataBundle:  # fmt: skip
    """Decide between memory, stream and cache, decode, build.

    Args:
        entry: registered name.  decoder: knows the root.  listings: stored split -> its files.  name: shown name.

    Raises:
        DataError: unreadable files, unequal sizes, class names that differ between the splits, empty classes.
        ResourceError: the decoded images cannot be kept, in memory or on the disk.
    """
    stored: Mapping[str, Split]
    if config.storage == "cached":
        stored, faults, digest, said = _cached(config, listings, decoder)
        return build(
            config,
            entry,
            name=name,
            where=decoder.root,
            stored=stored,
            digest=digest,
            notes=[*notes, *said],
            faults=faults,
        )
    height, width = first_shape(_paths(listings), decoder)
    total = sum(len(listing.paths) for listing in listings.values())
    if config.storage == "stream" or (config.storage == "auto" and total * 3 * height * width > MEMORY_BYTES):
        stored, faults, digest = _streamed(config, listings, decoder, (height, width))
        said = [f"storage: stream, {total} files of {height}x{width}; the digest covers names and sizes"]
    else:
        memory, faults = _in_memory(config, listings, decoder)
        stored, digest = memory, digest_memory(memory)
        said = [f"storage: memory, {total} images of {height}x{width}"]
    return build(
        config,
        entry,
        name=name,
        where=decoder.root,
        stored=stored,
        digest=digest,
        notes=[*notes, *said],
        faults=faults,
    )


def _paths(listings: Mapping[str, Listing]) -> list[str]:
    """The files of all splits, in the order of their rows."""
    return [path for listing in listings.values() for path in listing.paths]


def _list(root: Path) -> tuple[dict[str, Listing], list[str]]:
    """The listing of each stored split; only class folders count as one split, train."""
    names = folders(root, root)
    parts = {name: _NAMES[name] for name in names if name in _NAMES}
    if not names or not ("train" in parts.values() or len(parts) == len(names)):
        parts = {"": "train"}
    if len(set(parts.values())) < len(parts):
        raise DataError(
            f"two folders for one split: {', '.join(sorted(parts))}",
            where=str(root),
            hint="keep one of train, val, test each",
        )
    if set(parts.values()) == {"val", "test"}:
        raise DataError(
            "no train folder",
            where=str(root),
            hint=f"found {', '.join(sorted(parts))}; add train, or name one of them as folder:PATH/NAME",
        )
    listings = {
        part: list_images(root, name)
        for name, part in sorted(parts.items(), key=lambda item: ("train", "val", "test").index(item[1]))
    }
    first, *others = listings.items()
    for part, listing in others:
        check_classes(first[1].classes, listing.classes, where=f"{root}: {part}", against=first[0])
    ignored = sum(listing.ignored for listing in listings.values())
    left = [name for name in names if "" not in parts and name not in parts]
    notes = [f"{ignored} files that are not images left aside"] if ignored else []
    return listings, notes + ([printable(f"folders left aside: {', '.join(left)}")] if left else [])


def _in_memory(
    config: DataConfig, listings: Mapping[str, Listing], decoder: Decoder
) -> tuple[dict[str, MemorySplit], Faults]:
    """All files decoded once into one store, which the splits share."""
    paths = _paths(listings)
    pixels, faults = decode_all(paths, decoder, _threads(config, decoder))
    check_shape(pixels.shape[1:], where=os.path.join(decoder.root, paths[0]))
    return _parts(listings, Store(pixels)), _by_part(listings, faults)


def _cached(
    config: DataConfig, listings: Mapping[str, Listing], decoder: Decoder
) -> tuple[dict[str, MemorySplit], Faults, str, list[str]]:
    """The same splits over a file of the decoded images, their digest and notes; nothing is decoded when the file is there."""
    paths = _paths(listings)

    def probe() -> tuple[int, int, int]:
        return check_shape(
            (_channels(paths, decoder), *first_shape(paths, decoder)),
            where=os.path.join(decoder.root, paths[0]),
        )

    def digest(pixels: Tensor) -> str:
        return digest_memory(_parts(listings, Store(pixels)))

    found, notes = load(
        cache_folder(config.cache), Source(listings, decoder, _threads(config, decoder), probe, digest)
    )
    return _parts(listings, found.store), _by_part(listings, found.faults), found.digest, notes


def _parts(listings: Mapping[str, Listing], store: Store) -> dict[str, MemorySplit]:
    """The splits that share a store, one after the other."""
    splits: dict[str, MemorySplit] = {}
    start = 0
    for part, listing in listings.items():
        rows = torch.arange(start, start + len(listing.paths))
        splits[part] = MemorySplit(store, torch.tensor(listing.labels), listing.classes, rows=rows)
        start += len(rows)
    return splits


def _by_part(listings: Mapping[str, Listing], faults: Mapping[int, DataError]) -> Faults:
    """Faults by row of the store -> by index in each split."""
    found: dict[str, dict[int, DataError]] = {}
    start = 0
    for part, listing in listings.items():
        count = len(listing.paths)
        found[part] = {
            index - start: error for index, error in faults.items() if start <= index < start + count
        }
        start += count
    return found


def _streamed(
    config: DataConfig, listings: Mapping[str, Listing], decoder: Decoder, side: tuple[int, int]
) -> tuple[dict[str, StreamSplit], Faults, str]:
    """Splits that decode on demand. `bad_image: skip` needs to know the bad ones now, so it decodes the training files once."""
    paths = _paths(listings)
    shape = check_shape((_channels(paths, decoder), *side), where=os.path.join(decoder.root, paths[0]))
    workers = config.workers if config.workers is not None else min(8, cpu_count())
    splits: dict[str, StreamSplit] = {}
    for part, listing in listings.items():
        encoded = np.array([os.fsencode(path) for path in listing.paths])
        splits[part] = StreamSplit(
            encoded,
            decoder,
            torch.tensor(listing.labels),
            listing.classes,
            shape,
            workers=workers,
            timeout=float(config.timeout),
        )
    faults: dict[str, Mapping[int, DataError]] = {}
    if config.bad_image == "skip":
        source = "train" if "train" in listings else next(iter(listings))
        files = listings[source].paths
        faults[source] = each(len(files), _threads(config, decoder), lambda i: _try(files[i], decoder, shape))
    return splits, faults, _digest_files(listings, decoder.root)


def _try(path: str, decoder: Decoder, shape: tuple[int, int, int]) -> None:
    planes(decoder(path), shape, os.path.join(decoder.root, path))


def _channels(paths: Sequence[str], decoder: Decoder) -> int:
    """1 when evenly spaced probes are all grey, else 3; unreadable probes are left to the one who reads them."""
    chosen = np.unique(np.linspace(0, len(paths) - 1, _PROBES).round().astype(int)).tolist()
    colour: list[bool] = []

    def probe(place: int) -> None:
        colour.append(decoder(paths[chosen[place]]).ndim == 3)

    each(len(chosen), 1, probe)
    return 3 if any(colour) else 1


def _digest_files(listings: Mapping[str, Listing], root: str) -> str:
    """SHA-256 (hex) over split, classes, and each file's relative path and size: reading every byte of a large set takes too long."""
    state = hashlib.sha256()
    for part, listing in listings.items():
        state.update(json.dumps([part, listing.classes]).encode())
        for path in listing.paths:
            full = os.path.join(root, path)
            size = os.stat(full).st_size if os.path.exists(full) else -1
            state.update(os.fsencode(path) + b"\0" + str(size).encode() + b"\n")
    return state.hexdigest()


def _threads(config: DataConfig, decoder: Decoder) -> int:
    """Decoding threads. Small images spend their time in the interpreter, where a second thread costs more than it brings."""
    if config.workers is not None:
        return max(1, config.workers)
    return 1 if decoder.size is None else min(8, cpu_count())
