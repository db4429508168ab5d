"""`npz:PATH`: numpy arrays from a file, never a pickle."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_labels
from robustcli.data.datasets import source_path
from robustcli.data.layout.archive import Archive
from robustcli.data.layout.classes import stated_classes
from robustcli.data.packed.pixels import to_pixels
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_IMAGES, _LABELS = ("x", "images", "image", "data"), ("y", "labels", "label", "targets")
_CLASSES = "classes"
_NEEDS = "needs x_train, y_train, x_test, y_test, or x, y (or train_images, train_labels …, or image, label)"


@datasets.register("npz", path=True)
def npz(config: DataConfig) -> DataBundle:
    """x_train, y_train, x_test, y_test (x_val, y_val) or x, y (seeded split); optional `classes`: names.

    train_images, train_labels … and image, label are read too, and images with the channels last.

    x: uint8 [N, C, H, W], uint16 (data.max_value is white), or float in [0, 1].
    y: integers [N] in 0 to K - 1, without a gap unless `classes` gives K.
    """
    path = source_path(config)
    archive = Archive(path)
    pairs = _pairs(archive.names)
    keys = list(chain.from_iterable(pairs.values()))
    lacking = _lacking(archive.names, pairs)
    if lacking:
        has = ", ".join(sorted(archive.names)) or "none"
        raise DataError(f"no array {lacking}", where=str(path), hint=f"{_NEEDS}; has {has}")
    stored = {
        part: (partial(_pixels, archive, x, config), _column(archive.read(y)))
        for part, (x, y) in pairs.items()
    }
    classes = _classes(config, archive, stored)
    unused = sorted(set(archive.names) - {*keys, _CLASSES})
    notes = [printable(f"arrays left aside: {', '.join(unused)}")] * bool(unused)
    return bundle_arrays(
        config,
        "npz",
        name=f"npz:{path.name}",
        where=str(path),
        stored=stored,
        classes=classes,
        notes=notes,
        deep=any(archive.is_deep(x) for x, _ in pairs.values()),
    )


def _pairs(names: list[str]) -> dict[str, tuple[str, str]]:
    """Stored split -> names of its images and labels, of which one may be missing."""
    for images, labels in zip(_IMAGES, _LABELS, strict=True):
        if images in names:
            return {"train": (images, labels)}
    for pattern in (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("X_{}", "y_{}")):
        keys = {part: (pattern[0].format(part), pattern[1].format(part)) for part in PARTS}
        pairs = {part: pair for part, pair in keys.items() if set(pair) & set(names)}
        if pairs:
            return pairs
    return {}


def _lacking(names: list[str], pairs: dict[str, tuple[str, str]]) -> str:
    """The arrays that are missing, as text; those of train when there is no data set; "" for none."""
    if not pairs:
        return "x and y"
    return ", ".join(key for key in chain.from_iterable(pairs.values()) if key not in names)


def _pixels(archive: Archive, key: str, config: DataConfig) -> Tensor:
    """The array as a tensor [N, C, H, W], see `to_pixels`."""
    return to_pixels(archive.read(key), config, f"{archive.path}: {key}")


def _column(labels: Any) -> Any:
    """Labels [N] of [N, 1]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    return labels


def _classes(config: DataConfig, archive: Archive, stored: dict[str, tuple[Any, Any]]) -> tuple[str, ...]:
    """Names from the array `classes`, else those that data.classes states, else "0" to "K - 1"."""
    if _CLASSES in archive.names:
        return _names(archive.read(_CLASSES), archive.path)
    stated = stated_classes(config)
    if stated is not None:
        return stated
    part, (_, labels) = next(iter(stored.items()))
    checked = check_labels(labels, None, where=f"{archive.path}: labels of {part}")
    return tuple(str(k) for k in range(len(checked.unique())))


def _names(stored: Any, path: Path) -> tuple[str, ...]:
    """The array as class names."""
    if stored.dtype.kind == "U" and stored.ndim == 1:
        names = tuple(str(name) for name in stored.tolist())
        if names and len(set(names)) == len(names) and all(name.isprintable() for name in names):
            return names
    raise DataError(
        "`classes` is not a list of different names",
        where=str(path),
        hint="classes=numpy.array(['cat', 'dog'])",
        code="E-CLASS",
    )
