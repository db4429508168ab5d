"""`data.extra`: more training images from another data set, as one split."""

from __future__ import annotations

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.mixture import JoinedSplit, check_fit
from robustcli.data.stream import StreamSplit
from robustcli.errors import ConfigError, DataError


def extra_split(source: str, like: DataBundle, config: DataConfig) -> JoinedSplit:
    """All images of `source` as one split, whatever splits it holds.

    They are checked against the data set that they are added to.

    Args:
        source: npz:PATH or folder:PATH.
        like: the data set trained on; gives classes and shape.
        config: its data section; size, storage (folders), workers, timeout, bad_image and max_bad hold for
            `source` too.

    Returns:
        a split whose `digest` (SHA-256) belongs to the identity of the run, beside that of `like`.

    Raises:
        ConfigError: `source` is neither npz:PATH nor folder:PATH.
        DataError: unreadable or invalid data, other classes or shape, a class of fewer than three images, or
            the data set that is trained on, with its test images.
    """
    kind, _, path = source.partition(":")
    if kind not in ("npz", "folder") or not path:
        raise ConfigError(
            f"extra data {source!r} is not a file or folder",
            where="data.extra",
            hint="write npz:PATH or folder:PATH",
        )
    bundle = _load_whole(_settings(source, kind, config))
    if bundle.digest == like.digest:
        what = "the extra data is the data set itself, with its test images"
        raise DataError(what, where=source, hint="name other data", code="E-SPLIT")
    check_fit(bundle.train, like.classes, like.shape, where=source)
    for part in (bundle.val, bundle.test):
        if isinstance(part, StreamSplit) and len(part) <= bundle.num_classes:
            part.workers = 0  # one image of each class is not worth processes of its own
    return JoinedSplit((bundle.train, bundle.val, bundle.test), where=source, digest=bundle.digest)


def _settings(source: str, kind: str, config: DataConfig) -> DataConfig:
    """The data section for `source`.

    The images shall stay together, but `build` wants three splits that have some. So one image of each class
    goes to val and one to test, and `extra_split` joins all of them again.
    """
    storage = "auto"  # streaming the original files does not forbid arrays beside them
    if kind == "folder":
        storage = config.storage
    return config.model_copy(
        update={
            "name": source,
            "download": False,
            "augment": "none",
            "val_fraction": 1e-12,
            "test_fraction": 1e-12,
            "split_seed": 0,
            "storage": storage,
        }
    )


def _load_whole(config: DataConfig) -> DataBundle:
    """The data set; where images are missing, the error says how many extra data needs."""
    try:
        return load_data(config)
    except DataError as error:
        if error.code != "E-EMPTY":
            raise
        what = f"too few extra images: {error.what}"
        hint = "extra data needs three images of every class, and one in every split it holds"
        raise DataError(what, where=error.where, hint=hint, code=error.code) from error
