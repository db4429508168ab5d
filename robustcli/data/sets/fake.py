"""`fake`: seeded images of any size with an easy pattern per class, for smoke runs and tests."""

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
    """uint8 [count, 3, size, size]: image i is the pattern of class i mod 10 plus uniform noise up to 48/255.

    A pattern has 4x4 cells with values in 64..191.
    """
    drawn = _bytes(_CLASSES * 3 * _GRID**2, seed, 0).reshape(_CLASSES, 3, _GRID, _GRID)
    cells = (drawn // 2 + 64).astype(np.int16)
    cell = np.arange(size) * _GRID // size  # of each row and column
    pattern = cells[:, :, cell][:, :, :, cell]
    noise = _bytes(count * 3 * size * size, seed, stream).reshape(count, 3, size, size).astype(np.int16)
    shifted = pattern[np.arange(count) % _CLASSES] + noise % (2 * _NOISE + 1) - _NOISE
    return np.asarray(shifted, dtype=np.uint8)


@datasets.register("fake", presets={"linf": 8 / 255, "l2": 0.5, "l0": 5.0}, augment=(0, False))
def fake(config: DataConfig) -> DataBundle:
    """1,000 + 200 RGB images of 10 classes, a function of data.split_seed and data.size (default 32)."""
    size = config.size or 32
    stored = {}
    for part, count, stream in (("train", _TRAIN, 1), ("test", _TEST, 2)):
        pixels = torch.from_numpy(images(count, size, config.split_seed, stream))
        stored[part] = pixels, torch.arange(count) % _CLASSES
    classes = tuple(f"pattern-{k}" for k in range(_CLASSES))
    return bundle_arrays(config, "fake", name="fake", where="fake", stored=stored, classes=classes)
