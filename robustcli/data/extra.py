"""`data.extra`: more training images from another data set, as one split."""

from __future__ import annotations

from contextlib import suppress

import torch

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import NeedsFilesError
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data, spelling
from robustcli.data.mixture import JoinedSplit, check_fit
from robustcli.data.stream import StreamSplit
from robustcli.errors import ConfigError, DataError
from robustcli.registry import datasets


def extra_split(source: str, like: DataBundle, config: DataConfig) -> JoinedSplit:
    """All images of `source` as one split, whatever splits it holds.

    They are checked against the data set that they are added to.

    Args:
        source: NAME:PATH of a data set that takes a path.
        like: the data set trained on; gives classes and shape.
        config: its data section; size, storage (of files), workers, timeout, bad_image and max_bad hold for
            `source` too.

    Returns:
        a split whose `digest` (SHA-256) belongs to the identity of the run, beside that of `like`.

    Raises:
        ConfigError: `source` is not the name of such a data set with a path.
        DataError: unreadable or invalid data, other classes or shape, a class of fewer than three images, or
            the data set that is trained on, with its test images.
    """
    _check_path(source)
    bundle = _load_whole(config, source)
    if _is_the_same(bundle, like):
        what = "the extra data is the data set itself, with its test images"
        raise DataError(what, where=source, hint="name other data", code="E-SPLIT")
    check_fit(bundle.train, like.classes, like.shape, where=source)
    for part in (bundle.val, bundle.test):
        if isinstance(part, StreamSplit) and len(part) <= bundle.num_classes:
            part.workers = 0  # one image of each class is not worth processes of its own
    return JoinedSplit((bundle.train, bundle.val, bundle.test), where=source, digest=bundle.digest)


def _is_the_same(bundle: DataBundle, like: DataBundle) -> bool:
    """Whether the splits that were read of `like` are splits of `bundle` too."""
    names = like.read_names
    if not set(names) <= set(bundle.stored.names):
        return False
    if any(not torch.equal(bundle.stored.labels(name), like.stored.labels(name)) for name in names):
        return False
    return bundle.digest_of(names) == like.digest


def _check_path(source: str) -> None:
    """`source` names a data set that takes a path, and a path."""
    name, _, path = source.partition(":")
    if not path or name not in datasets or not datasets.get(name).facts.path:
        *others, last = (spelling(entry) for entry in datasets if entry.facts.path)
        raise ConfigError(
            f"extra data {source!r} is not a file or folder",
            where="data.extra",
            hint=f"write {', '.join(others)} or {last}",
        )


def _load_whole(config: DataConfig, source: str) -> DataBundle:
    """The data set `source`, of which val and test are one image of each class.

    Its images shall stay together, but `build` wants three splits that have some. `extra_split` joins them
    again.
    """
    asked = {"name": source, "download": False, "augment": "none", "split_seed": 0}
    fractions = {"val_fraction": 1e-12, "test_fraction": 1e-12}
    try:
        return _load(config.model_copy(update=asked | fractions))
    except DataError as error:
        if error.code != "E-EMPTY":
            raise
        what = f"too few extra images: {error.what}"
        hint = "extra data needs three images of every class, and one in every split it holds"
        raise DataError(what, where=error.where, hint=hint, code=error.code) from error


def _load(config: DataConfig) -> DataBundle:
    """The data set; arrays are kept in memory, also where data.storage streams or caches the original."""
    with suppress(NeedsFilesError):
        return load_data(config)
    return load_data(config.model_copy(update={"storage": "auto"}))
