"""From lists of image files to a bundle.

Small sets are decoded into memory. Large ones are decoded whenever an image is needed, or once into a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle, build
from robustcli.data.cache import cache_folder, load
from robustcli.data.check import check_shape
from robustcli.data.decoded import Source
from robustcli.data.digest import digest_files, digest_memory
from robustcli.data.files import Listing, all_paths
from robustcli.data.images import Decoder, collect_faults, decode_all, first_shape, planes
from robustcli.data.split import MemorySplit, Paths, Split, Store
from robustcli.data.stream import StreamSplit
from robustcli.errors import DataError

MEMORY_BYTES = 2 * 2**30  # above this many bytes of pixels, `storage: auto` streams
_PROBES = 64  # images decoded to tell grey from colour before streaming
Faults = Mapping[str, Mapping[int, DataError]]
#: The stored splits, their unreadable images by index in each, the digest, and notes.
Loaded = tuple[Mapping[str, Split], Faults, str, list[str]]


def bundle_listings(
    config: DataConfig,
    entry: str,
    decoder: Decoder,
    listings: Mapping[str, Listing],
    *,
    name: str,
    notes: Sequence[str] = (),
) -> DataBundle:
    """Decide between memory, stream and cache, decode, build.

    Args:
        config, entry, name, notes: as in `bundle.build`.
        decoder: file -> pixels; it knows the root.
        listings: stored split -> its files; the split to train on comes first.

    Raises:
        DataError: unreadable files, unequal sizes, class names that differ between the splits, empty classes.
        ResourceError: the decoded images cannot be kept, in memory or on the disk.
    """
    stored, faults, digest, storage_notes = _load(config, listings, decoder)
    return build(
        config,
        entry,
        name=name,
        where=decoder.root,
        stored=stored,
        digest=digest,
        notes=[*notes, *storage_notes],
        faults=faults,
    )


def _load(config: DataConfig, listings: Mapping[str, Listing], decoder: Decoder) -> Loaded:
    """The splits as data.storage asks for them."""
    if config.storage == "cached":
        return _cached(config, listings, decoder)
    paths = all_paths(listings)
    height, width = first_shape(paths, decoder)
    large = len(paths) * 3 * height * width > MEMORY_BYTES
    if config.storage == "stream" or (config.storage == "auto" and large):
        return _streamed(config, listings, decoder, (height, width))
    pixels, faults = decode_all(paths, decoder, _threads(config, decoder))
    check_shape(pixels.shape[1:], where=os.path.join(decoder.root, paths[0]))
    splits = _share(listings, Store(pixels))
    note = f"storage: memory, {len(paths)} images of {height}x{width}"
    return splits, _by_split(listings, faults), digest_memory(splits), [note]


def _cached(config: DataConfig, listings: Mapping[str, Listing], decoder: Decoder) -> Loaded:
    """Splits over a file of the decoded images; nothing is decoded when the file is there."""
    paths = all_paths(listings)

    def probe() -> tuple[int, int, int]:
        shape = _channels(paths, decoder), *first_shape(paths, decoder)
        return check_shape(shape, where=os.path.join(decoder.root, paths[0]))

    def digest(pixels: Tensor) -> str:
        return digest_memory(_share(listings, Store(pixels)))

    source = Source(listings, decoder, _threads(config, decoder), probe, digest)
    decoded, notes = load(cache_folder(config.cache), source)
    return _share(listings, decoded.store), _by_split(listings, decoded.faults), decoded.digest, notes


def _share(listings: Mapping[str, Listing], store: Store) -> dict[str, MemorySplit]:
    """Splits that share a store, whose rows are those of one split after the other."""
    store.paths = as_paths(all_paths(listings))
    splits: dict[str, MemorySplit] = {}
    start = 0
    for part, listing in listings.items():
        rows = torch.arange(start, start + len(listing.paths))
        splits[part] = MemorySplit(store, torch.tensor(listing.labels), listing.classes, rows=rows)
        start += len(rows)
    return splits


def as_paths(paths: Sequence[str]) -> Paths:
    """File names as one array of bytes, which many forked workers can share."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)


def _by_split(listings: Mapping[str, Listing], faults: Mapping[int, DataError]) -> Faults:
    """Faults by row of the store -> faults by index in each split."""
    by_split: dict[str, dict[int, DataError]] = {}
    start = 0
    for part, listing in listings.items():
        end = start + len(listing.paths)
        by_split[part] = {row - start: error for row, error in faults.items() if start <= row < end}
        start = end
    return by_split


def _streamed(
    config: DataConfig, listings: Mapping[str, Listing], decoder: Decoder, side: tuple[int, int]
) -> Loaded:
    """Splits that decode on demand.

    `bad_image: skip` must know the unreadable images now, so it decodes the training files once.
    """
    paths = all_paths(listings)
    shape = check_shape((_channels(paths, decoder), *side), where=os.path.join(decoder.root, paths[0]))
    splits: dict[str, StreamSplit] = {}
    for part, listing in listings.items():
        splits[part] = StreamSplit(
            as_paths(listing.paths),
            decoder,
            torch.tensor(listing.labels),
            listing.classes,
            shape,
            workers=_processes(config),
            timeout=float(config.timeout),
        )
    faults: dict[str, Mapping[int, DataError]] = {}
    if config.bad_image == "skip":
        train = next(iter(listings))
        faults[train] = _unreadable(listings[train].paths, decoder, shape, _threads(config, decoder))
    height, width = side
    note = f"storage: stream, {len(paths)} files of {height}x{width}; the digest covers names and sizes"
    return splits, faults, digest_files(listings, decoder.root), [note]


def _unreadable(
    paths: Sequence[str], decoder: Decoder, shape: tuple[int, int, int], threads: int
) -> dict[int, DataError]:
    """Index -> why that file cannot be read as an image of this shape."""

    def decode(index: int) -> None:
        planes(decoder(paths[index]), shape, os.path.join(decoder.root, paths[index]))

    return collect_faults(len(paths), threads, decode)


def _channels(paths: Sequence[str], decoder: Decoder) -> int:
    """1 when evenly spaced probes are all grey, else 3.

    An unreadable probe says nothing: whoever reads that image later gets its error.
    """
    chosen = np.unique(np.linspace(0, len(paths) - 1, _PROBES).round().astype(int)).tolist()
    colour: list[bool] = []

    def probe(place: int) -> None:
        colour.append(decoder(paths[chosen[place]]).ndim == 3)

    collect_faults(len(chosen), 1, probe)
    return 3 if any(colour) else 1


def _processes(config: DataConfig) -> int:
    """Decoding processes."""
    if config.workers is None:
        return min(8, _cpu_count())
    return config.workers


def _threads(config: DataConfig, decoder: Decoder) -> int:
    """Decoding threads.

    Small images spend their time in the interpreter, where a second thread costs more than it brings.
    """
    if config.workers is not None:
        return max(1, config.workers)
    if decoder.size is None:
        return 1
    return min(8, _cpu_count())


def _cpu_count() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may leave fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
