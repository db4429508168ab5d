"""From listed files to a bundle: pixels in memory, streamed, or decoded once into a file.

Small sets are decoded into memory. Large ones are decoded whenever an image is needed, or once into a file.
The three ways stand in one file because they share how they list, check and digest the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.cache import cache_folder, load
from robustcli.data.check import check_shape, dim_warning
from robustcli.data.decoded import Source
from robustcli.data.digest import digest_files, digest_memory
from robustcli.data.files import Listing, all_paths
from robustcli.data.images import Decoder, collect_faults, decode_all, planes, usual_shape
from robustcli.data.split import MemorySplit, Paths, Split, Store
from robustcli.data.stored import Loaded
from robustcli.data.stream import StreamSplit
from robustcli.errors import DataError

MEMORY_BYTES = 2 * 2**30  # above this many bytes of pixels, `storage: auto` streams
_PROBES = 64  # images decoded to tell grey from colour before streaming
_FEW = 8  # images of another split that are looked at for its size
Listings = Mapping[str, Listing]


def bundle_listings(
    config: DataConfig,
    entry: str,
    decoder: Decoder,
    listings: Mapping[str, Callable[[], Listing]],
    classes: tuple[str, ...],
    *,
    name: str,
    notes: Sequence[str] = (),
    explain: Callable[[DataError], DataError] = lambda error: error,
) -> DataBundle:
    """The bundle of listed files. A split is listed and read when it is needed.

    Args:
        config, entry, name, notes, explain: as in `DataBundle`.
        decoder: file -> pixels; it knows the root.
        listings: stored split -> a function that lists its files; the split to train on comes first.
        classes: all classes in the order of their labels, which every listing has.
    """
    stored = ListedSplits(config, decoder, listings, classes)
    return DataBundle(
        config, entry, name=name, where=decoder.root, stored=stored, notes=notes, explain=explain
    )


@dataclass(frozen=True)
class ListedSplits:
    """Files of each stored split, see `Stored`; arguments as in `bundle_listings`."""

    config: DataConfig
    decoder: Decoder
    listers: Mapping[str, Callable[[], Listing]]
    classes: tuple[str, ...]
    _known: dict[str, Listing] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.listers)

    def listing(self, name: str) -> Listing:
        """The files of one split."""
        if name not in self._known:
            self._known[name] = self.listers[name]()
        return self._known[name]

    def labels(self, name: str) -> Tensor:
        """See `Stored.labels`."""
        return torch.tensor(self.listing(name).labels, dtype=torch.int64)

    def load(self, names: Sequence[str]) -> Loaded:
        """See `Stored.load`: in memory, streamed or cached, as data.storage asks for it.

        Raises:
            DataError: no image can be read, or the images are not square.
            ResourceError: the decoded images cannot be kept, in memory or on the disk.
        """
        listings = {name: self.listing(name) for name in names}
        ignored = sum(listing.ignored for listing in listings.values())
        notes = [f"{ignored} files that are not images left aside"] * bool(ignored)
        if not all_paths(listings):
            raise DataError("no images", where=self.decoder.root, hint="add images", code="E-EMPTY")
        loaded = _load(self.config, listings, self.decoder, self._grey_channels(names))
        self._check_against_others(names, loaded)
        made_from = _stored_size(all_paths(listings), self.decoder)
        notes += [*loaded.notes, *_resized(made_from, self.decoder)]
        return replace(loaded, notes=notes, made_from=made_from)

    def _grey_channels(self, names: Sequence[str]) -> Callable[[], int]:
        """A function that gives the channels of images that are all grey.

        They are 3 when data.channels is, or when images of another split have colour; else 1.
        """

        def probe() -> int:
            if self.config.channels == 3:
                return 3
            others = (self.listing(name).paths for name in self.names if name not in names)
            return 3 if any(_channels(paths, self.decoder) == 3 for paths in others if paths) else 1

        return probe

    def _check_against_others(self, names: Sequence[str], loaded: Loaded) -> None:
        """The images have the size of those of the splits that are not read now."""
        if self.decoder.size is not None:
            return
        shape = next(iter(loaded.splits.values())).shape
        for name in self.names:
            paths = [] if name in names else self.listing(name).paths[:_FEW]
            try:
                side = usual_shape(paths, self.decoder)
            except DataError:  # whoever reads that split gets the error
                continue
            check_shape((shape[0], *side), shape, where=os.path.join(self.decoder.root, paths[0]))


def _load(
    config: DataConfig, listings: Listings, decoder: Decoder, grey_channels: Callable[[], int]
) -> Loaded:
    """The splits as data.storage asks for them. grey_channels: gives C for images that are all grey."""
    if config.storage == "cached":
        return _cached(config, listings, decoder, grey_channels())
    paths = all_paths(listings)
    height, width = side = usual_shape(paths, decoder)
    large = len(paths) * 3 * height * width > MEMORY_BYTES
    if config.storage == "stream" or (config.storage == "auto" and large):
        return _streamed(config, listings, decoder, side, grey_channels)
    pixels, faults = decode_all(paths, decoder, _threads(config, decoder), grey_channels, side)
    check_shape(pixels.shape[1:], where=_first(paths, decoder))
    splits = _share(listings, Store(pixels))
    note = f"storage: memory, {len(paths)} images of {height}x{width}"
    deep = config.max_value is None and decoder.deep(paths[0])
    warnings = dim_warning(pixels, "images", deep=deep)
    return Loaded(splits, _by_split(listings, faults), digest_memory(splits), [note], warnings)


def _cached(config: DataConfig, listings: Listings, decoder: Decoder, grey_channels: int) -> Loaded:
    """Splits over a file of the decoded images; nothing is decoded when the file is there."""
    paths = all_paths(listings)

    def probe() -> tuple[int, int, int]:
        channels = max(_channels(paths, decoder), grey_channels)
        return check_shape((channels, *usual_shape(paths, decoder)), where=_first(paths, decoder))

    def digest(pixels: Tensor) -> str:
        return digest_memory(_share(listings, Store(pixels)))

    source = Source(listings, decoder, _threads(config, decoder), probe, digest, grey_channels == 3)
    decoded, notes = load(cache_folder(config.cache), source)
    faults = _by_split(listings, decoded.faults)
    return Loaded(_share(listings, decoded.store), faults, decoded.digest, notes)


def _first(paths: Sequence[str], decoder: Decoder) -> str:
    return os.path.join(decoder.root, paths[0])


def _share(listings: Listings, store: Store) -> dict[str, MemorySplit]:
    """Splits that share a store, whose rows are those of one split after the other."""
    store.paths = as_paths(all_paths(listings))
    splits: dict[str, MemorySplit] = {}
    start = 0
    for part, listing in listings.items():
        rows = torch.arange(start, start + len(listing.paths))
        labels = torch.tensor(listing.labels, dtype=torch.int64)
        splits[part] = MemorySplit(store, labels, listing.classes, rows=rows)
        start += len(rows)
    return splits


def as_paths(paths: Sequence[str]) -> Paths:
    """File names as one array of bytes, which many forked workers can share."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)


def _by_split(listings: Listings, faults: Mapping[int, DataError]) -> dict[str, dict[int, DataError]]:
    """Faults by row of the store -> faults by index in each split."""
    by_split: dict[str, dict[int, DataError]] = {}
    start = 0
    for part, listing in listings.items():
        end = start + len(listing.paths)
        by_split[part] = {row - start: error for row, error in faults.items() if start <= row < end}
        start = end
    return by_split


def _streamed(
    config: DataConfig,
    listings: Listings,
    decoder: Decoder,
    side: tuple[int, int],
    grey_channels: Callable[[], int],
) -> Loaded:
    """Splits that decode on demand.

    `bad_image: skip` must know the unreadable images now, so it decodes the training files once.
    """
    paths = all_paths(listings)
    channels = 3 if _channels(paths, decoder) == 3 else grey_channels()
    shape = check_shape((channels, *side), where=_first(paths, decoder))
    splits: dict[str, Split] = {}
    for part, listing in listings.items():
        splits[part] = StreamSplit(
            as_paths(listing.paths),
            decoder,
            torch.tensor(listing.labels, dtype=torch.int64),
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
    return Loaded(splits, faults, digest_files(listings, decoder), [note])


def _stored_size(paths: Sequence[str], decoder: Decoder) -> str:
    """640x480, the size of the first file, where files are resized; "" where they are not."""
    if decoder.size is None:
        return ""
    width, height = decoder.stored_size(paths)
    if (width, height) in ((decoder.size, decoder.size), (0, 0)):
        return ""
    return f"{width}x{height}"


def _resized(made_from: str, decoder: Decoder) -> list[str]:
    """A note on images that are resized, or cut to a square."""
    if not made_from:
        return []
    width, height = made_from.split("x")
    cut = "" if width == height else ", and cut to the square in their centre"
    return [f"images of {made_from} are resized to {decoder.size}x{decoder.size}{cut}"]


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
    if config.workers is None and decoder.size is None:
        return 1
    return decoding_threads(config)


def decoding_threads(config: DataConfig) -> int:
    """Threads that read whole files, of whatever size."""
    return max(1, _processes(config))


def _cpu_count() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may leave fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
