"""`digits`: the 1,797 real 8x8 images inside scikit-learn; always there, offline."""

from __future__ import annotations

import importlib

import numpy as np
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.registry import datasets


@datasets.register("digits", presets={"linf": 0.1, "l2": 0.5, "l0": 2.0}, augment=(0, False))
def digits(config: DataConfig) -> DataBundle:
    """1,797 grey 8x8 digits of 43 writers, 10 classes; seeded 25 % test split.

    The pixels v of 0..16 are stored as round(v * 255 / 16).

    Source: Alpaydin & Kaynak, UCI Optical Recognition of Handwritten Digits, 1998, as shipped by
    scikit-learn.
    """
    source = importlib.import_module("sklearn.datasets")  # late: it takes a second; scikit-learn has no types
    loaded = source.load_digits()
    pixels = np.rint(np.asarray(loaded.images) * 255.0 / 16.0).astype(np.uint8)[:, None]
    labels = torch.from_numpy(np.asarray(loaded.target).astype(np.int64))
    classes = tuple(str(k) for k in range(10))
    return bundle_arrays(
        config,
        "digits",
        name="digits",
        where="digits",
        stored={"train": (torch.from_numpy(pixels), labels)},
        classes=classes,
    )
