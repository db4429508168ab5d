"""`fake`: seeded images with a pattern per class that any model can learn, in any size; for smoke runs and tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.arrays import bundle_arrays
from robustcli.data.bundle import DataBundle
from robustcli.registry import datasets

_CLASSES, _TRAIN, _TEST = 10, 1000, 200
_GRID, _NOISE = 4, 48  # cells per side of a pattern; largest change of a pixel, in 1/255


def _bytes(count: int, seed: int, stream: int) -> npt.NDArray[np.uint8]:
    """`count` random bytes, the same on every platform and numpy version."""
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(-(-count // 8))
    return np.asarray(words, dtype="<u8").view(np.uint8)[:count]


def images(count: int, size: int, seed: int, stream: int) -> npt.NDArray[np.uint8]:
    """uint8 [count, 3, size, size]: the pattern of class i mod 10 (4x4 cells in 64..191) plus uniform noise within 48/255."""
    cells = (
        (_bytes(_CLASSES * 3 * _GRID**2, seed, 0) // 2 + 64)
        .reshape(_CLASSES, 3, _GRID, _GRID)
        .astype(np.int16)
    )
    place = np.arange(size) * _GRID // size
    pattern = cells[:, :, place][:, :, :, place]
    noise = _bytes(count * 3 * size * size, seed, stream).reshape(count, 3, size, size).astype(np.int16)
    return np.asarray(
        pattern[np.arange(count) % _CLASSES] + noise % (2 * _NOISE + 1) - _NOISE, dtype=np.uint8
    )


@datasets.register("fake", presets={"linf": 8 / 255, "l2": 0.5}, augment=(0, False))
def fake(config: DataConfig) -> DataBundle:
    """1,000 training and 200 test RGB images of 10 classes, a function of data.split_seed and data.size (default 32)."""
    size = config.size or 32
    stored = {
        part: (
            torch.from_numpy(images(count, size, config.split_seed, stream)),
            torch.arange(count) % _CLASSES,
        )
        for part, count, stream in (("train", _TRAIN, 1), ("test", _TEST, 2))
    }
    classes = tuple(f"pattern-{k}" for k in range(_CLASSES))
    return bundle_arrays(config, "fake", name="fake", where="fake", stored=stored, classes=classes)
