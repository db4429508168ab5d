"""The sets torchvision knows: it finds, checks and downloads the files; everything after that is ours."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_labels
from robustcli.data.files import Listing, open_regular
from robustcli.data.images import Decoder
from robustcli.data.layout.tree import class_folders, list_images
from robustcli.data.listings import bundle_listings
from robustcli.data.sets.folder import bundle_folder
from robustcli.data.signs import SIGNS
from robustcli.errors import DataError, ResourceError
from robustcli.registry import datasets

#: A mismatch of torch and torchvision shows in all of these ways.
_NO_IMPORT = (ImportError, OSError, RuntimeError, AttributeError)
_BROKEN = (RuntimeError, OSError, EOFError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile)
_CIFAR = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0}  # l0: arXiv:2006.12834
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def import_torchvision() -> Any:
    """The module torchvision.datasets.

    Raises:
        ResourceError: E-TORCHVISION, torchvision is missing or does not match torch; the hint says what to
            do.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except _NO_IMPORT as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"import torchvision failed: {reason}",
            where=f"torch {torch.__version__}",
            hint="torch and torchvision do not match: "
            "pip install torchvision in a fresh environment resolves both",
            code="E-TORCHVISION",
        ) from error


def fetch(vision: str, root: Path, name: str, *, download: bool, **options: Any) -> Any:
    """torchvision's data set object, from the disk, else downloaded when that is allowed.

    Args:
        vision: name of torchvision's class.
        root: data.root.
        name: our name of the data set.
        download: whether it is allowed.
        options: further arguments of the class (train, split).

    Raises:
        DataError: not on disk (says where it looked and how to get it), damaged, or the download failed.
    """
    build = getattr(import_torchvision(), vision)
    with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout is for results
        try:
            return build(str(root), **options)
        except _BROKEN as error:
            if not download:
                where = f"looked in {root.absolute()}"
                hint = "add --download, or set data.root"
                raise DataError(_unread(name, error), where=where, hint=hint) from error
        try:
            return build(str(root), download=True, **options)
        except _BROKEN as error:
            what = f"download of {name} failed: {error}"
            hint = "check the network, or copy the files to data.root"
            raise DataError(what, where=str(root.absolute()), hint=hint, code="E-DOWNLOAD") from error


def _unread(name: str, error: Exception) -> str:
    """Why torchvision gives no data set; it says "not found" of a damaged file too."""
    if "not found" in str(error):
        return f"{name} is not on disk, or damaged"
    return f"{name} cannot be read: {error}"


def download(vision: str, root: Path, name: str) -> None:
    """Have torchvision put the files of a data set under `root`. Raises DataError when it cannot."""
    for train in (True, False):
        fetch(vision, root, name, download=True, train=train)


def _root(config: DataConfig) -> Path:
    return Path(config.root).expanduser()


@datasets.register(
    "cifar10", presets=_CIFAR, augment=(4, True), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
def cifar10(config: DataConfig) -> DataBundle:
    """50,000 + 10,000 RGB 32x32 photographs, 10 classes.

    Source: Krizhevsky, 2009.
    """
    return _cifar(config, "cifar10", "CIFAR10")


@datasets.register(
    "cifar100", presets=_CIFAR, augment=(4, True), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
)
def cifar100(config: DataConfig) -> DataBundle:
    """50,000 + 10,000 RGB 32x32 photographs, 100 classes.

    Source: Krizhevsky, 2009.
    """
    return _cifar(config, "cifar100", "CIFAR100")


def _cifar(config: DataConfig, name: str, vision: str) -> DataBundle:
    """CIFAR-10 or CIFAR-100; `vision` is torchvision's class."""
    stored = {}
    classes: tuple[str, ...] = ()
    for part in ("train", "test"):
        source = fetch(vision, _root(config), name, download=config.download, train=part == "train")
        pixels = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))
        stored[part] = torch.from_numpy(pixels), np.asarray(source.targets)
        classes = classes or tuple(source.classes)
    return bundle_arrays(config, name, name=name, where=str(_root(config)), stored=stored, classes=classes)


@datasets.register(
    "svhn", presets=_CIFAR, augment=(4, False), mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)
)
def svhn(config: DataConfig) -> DataBundle:
    """73,257 + 26,032 RGB 32x32 house-number digits, 10 classes.

    Source: Netzer et al., NeurIPS workshop 2011.
    """
    stored = {}
    for part in ("train", "test"):
        source = fetch("SVHN", _root(config), "svhn", download=config.download, split=part)
        stored[part] = torch.from_numpy(np.ascontiguousarray(source.data)), np.asarray(source.labels)
    classes = tuple(str(k) for k in range(10))
    return bundle_arrays(
        config, "svhn", name="svhn", where=str(_root(config)), stored=stored, classes=classes
    )


@datasets.register(
    "gtsrb",
    presets={"linf": 8 / 255},
    augment=(4, False),
    mean=(0.3403, 0.3121, 0.3214),
    std=(0.2724, 0.2608, 0.2669),
)
def gtsrb(config: DataConfig) -> DataBundle:
    """26,640 + 12,630 RGB traffic signs, 43 classes, resized to data.size (default 32).

    Source: Stallkamp et al., Neural Networks 2012.
    """
    base = _root(config) / "gtsrb"
    for part, place in (("train", base / "GTSRB" / "Training"), ("test", base / "GT-final_test.csv")):
        if not place.exists():
            fetch("GTSRB", _root(config), "gtsrb", download=config.download, split=part)
    decoder = Decoder.of(config, str(base), size=32)
    signs = os.path.join("GTSRB", "Training")
    own = tuple(class_folders(base, signs, decoder.roots))
    classes = SIGNS if len(own) == len(SIGNS) else own

    def train() -> Listing:
        found = list_images(base, signs, own, decoder.roots)
        return Listing(classes, found.paths, found.labels, found.ignored)

    listers: dict[str, Callable[[], Listing]] = {"train": train, "test": partial(_signs_test, base, classes)}
    return bundle_listings(config, "gtsrb", decoder, listers, classes, name="gtsrb")


def _signs_test(base: Path, classes: tuple[str, ...]) -> Listing:
    """Files and labels of GT-final_test.csv.

    Only the base name of a file counts, so none leaves the folder.
    """
    table = base / "GT-final_test.csv"
    try:
        with open_regular(table) as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8")
            rows = list(csv.DictReader(text, delimiter=";", skipinitialspace=True))
        pairs = sorted((os.path.basename(row["Filename"]), int(row["ClassId"])) for row in rows)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        hint = "needs columns Filename and ClassId; download it again"
        raise DataError(f"damaged table: {error}", where=str(table), hint=hint) from error
    paths = [os.path.join("GTSRB", "Final_Test", "Images", name) for name, _ in pairs]
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    checked = check_labels(labels, len(classes), where=str(table), paths=paths)
    return Listing(classes, paths, checked.tolist())


@datasets.register(
    "imagenet",
    presets={"linf": 4 / 255, "l2": 3.0},
    augment=(0, True),
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
)
def imagenet(config: DataConfig) -> DataBundle:
    """ImageNet-1k at 224 pixels; data.root holds train/ and val/ by WordNet id, or the archives.

    The short side is resized to size * 256/224, then the centre is cropped. The 50,000 stored val images are
    the test; without train/ a seeded split of them gives all three splits.

    Source: Russakovsky et al., IJCV 2015, arXiv:1409.0575.
    """
    places = [_root(config), _root(config) / "imagenet"]
    root = next((place for place in places if (place / "val").is_dir() or (place / "train").is_dir()), None)
    if root is None:
        root = _unpack(config, places)
    return bundle_folder(config, "imagenet", root, name="imagenet", size=224, ratio=256 / 224)


def _unpack(config: DataConfig, places: list[Path]) -> Path:
    """Unpack the archives that a user has placed in one of `places`; give that folder.

    torchvision never downloads ImageNet. Unpacking writes under data.root, so it needs --download.
    """
    looked = ", ".join(str(place.absolute()) for place in places)
    root = next((place for place in places if (place / "ILSVRC2012_devkit_t12.tar.gz").exists()), None)
    if root is None:
        hint = (
            "ImageNet cannot be downloaded: put train/ and val/, or the ILSVRC2012 archives, into data.root"
        )
        raise DataError("imagenet is not on disk", where=f"looked for train/ and val/ in {looked}", hint=hint)
    if not config.download:
        hint = "add --download to unpack them there"
        raise DataError("the ImageNet archives are not unpacked", where=str(root.absolute()), hint=hint)
    for part in ("val", "train"):
        if (root / f"ILSVRC2012_img_{part}.tar").exists():
            fetch("ImageNet", root, "imagenet", download=False, split=part)
    return root
