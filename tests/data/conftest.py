"""Small data sets on disk, built by the tests themselves."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _random_state_untouched() -> Iterator[None]:
    """Nothing in this package may draw from the global generators."""
    torch.manual_seed(123)
    np.random.seed(123)
    before, state = torch.get_rng_state(), np.random.get_state()[1]
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global state of torch was used"
    assert np.array_equal(state, np.random.get_state()[1]), "the global state of numpy was used"


Picture = Callable[..., Image.Image]


@pytest.fixture
def picture() -> Picture:
    """picture(k, size=8, mode="RGB"): an image whose pixels depend on k."""

    def make(k: int, size: int | tuple[int, int] = 8, mode: str = "RGB") -> Image.Image:
        width, height = (size, size) if isinstance(size, int) else size
        values = np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(values).convert(mode)

    return make


@pytest.fixture
def make_folder(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """make_folder({"train/cat": 3, ...}): PNG files 000.png … in each folder."""

    def make(counts: dict[str, int], **options: Any) -> Path:
        root = tmp_path / "images"
        for number, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for k in range(count):
                picture(1000 * number + k, **options).save(root / name / f"{k:03d}.png")
        return root

    return make


@pytest.fixture
def write_idx() -> Callable[..., None]:
    """write_idx(path, uint8 array): an IDX file, packed when the name ends in .gz."""

    def write(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = (
            struct.pack(">HBB", 0, 8, array.ndim)
            + struct.pack(f">{array.ndim}I", *array.shape)
            + array.astype(np.uint8).tobytes()
        )
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)

    return write
