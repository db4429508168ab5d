from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.config.sections import Augment, DataConfig
from robustcli.data.datasets import load_data
from robustcli.data.sets.idx import read_idx
from robustcli.errors import DataError


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


@pytest.fixture
def mnist_files(write_idx):
    def write(folder: Path, *, train: int = 60, test: int = 20, suffix: str = "") -> None:
        for stem, count, seed in (("train", train, 0), ("t10k", test, 1)):
            if count:
                write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", pictures(count, seed))
                write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)

    return write


def load(root: Path, name: str = "mnist", **options):
    return load_data(DataConfig(name=name, root=str(root), **options), allow_download=False)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "MNIST/raw", "mnist"])
def test_mnist(tmp_path: Path, mnist_files, suffix: str, place: str) -> None:
    mnist_files(tmp_path / place, suffix=suffix)
    bundle = load(tmp_path)
    assert (
        bundle.name == "mnist"
        and bundle.shape == (1, 28, 28)
        and (len(bundle.train), len(bundle.val), len(bundle.test)) == (50, 10, 20)
    )
    assert bundle.presets == {"linf": 0.3, "l2": 2.0, "l0": 10}
    assert bundle.mean == (0.1307,) and bundle.std == (0.3081,)
    assert bundle.augment == Augment(crop=0, flip=False)
    ((x, y, _),) = bundle.test.stream([torch.arange(20)], torch.device("cpu"))
    assert torch.equal(x[:, 0], torch.from_numpy(pictures(20, 1)).float() / 255) and y.tolist() == [
        k % 10 for k in range(20)
    ]


def test_t10k_alone_is_split_by_seed(tmp_path: Path, mnist_files) -> None:
    mnist_files(tmp_path, train=0, test=80, suffix=".gz")
    bundle = load(tmp_path)
    assert bundle.name == "mnist" and (len(bundle.train), len(bundle.val), len(bundle.test)) == (50, 10, 20)
    assert any(note.startswith("t10k split") for note in bundle.notes)


def test_fashion(tmp_path: Path, mnist_files) -> None:
    mnist_files(tmp_path / "FashionMNIST/raw")
    bundle = load(tmp_path, "fashion-mnist")
    assert bundle.classes[9] == "Ankle boot" and bundle.presets["linf"] == 0.1
    with pytest.raises(DataError, match="mnist is not on disk"):
        load(tmp_path, "mnist")


def test_not_on_disk(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    error = caught.value
    assert (
        error.exit_code == 3 and str(tmp_path / "MNIST" / "raw") in error.where and "--download" in error.hint
    )


def header(kind: int, *shape: int) -> bytes:
    return struct.pack(">HBB", 0, kind, len(shape)) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "damaged IDX file"),
        (b"\0\0", "damaged IDX file"),
        (b"PK\3\4 something else", "not an IDX file of bytes"),
        (header(0x0D, 2) + bytes(8), "not an IDX file of bytes"),
        (header(8), "not an IDX file of bytes"),
        (header(8, 2, 2)[:9], "damaged IDX file"),
        (header(8, 4) + b"abc", "IDX file has 3 of 4 bytes"),
        (header(8, 4) + b"abcde", "more than of 4 bytes"),
        (header(8, 2**31, 2**31) + b"abc", "announces"),
        (gzip.compress(header(8, 4) + b"abcd", mtime=0)[:-9], "damaged IDX file"),
        (gzip.compress(header(8, 400) + bytes(400), mtime=0)[:30], "damaged IDX file"),
        (b"\x1f\x8b broken", "damaged IDX file"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert text in caught.value.line() and str(path) in caught.value.where and caught.value.hint


def test_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(header(8, 4) + bytes(50_000_000)))
    with pytest.raises(DataError, match="more than"):
        read_idx(path)


def test_any_shape(tmp_path: Path, write_idx) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a", array)
    assert np.array_equal(read_idx(tmp_path / "a"), array)


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (pictures(20), np.arange(19) % 10, "19 labels for 20 images"),
        (pictures(20), np.arange(20) % 11, "label 10 at index 10 not in [0,9]"),
        (pictures(20)[:, 0], np.arange(20) % 10, "got 1x28"),
        (pictures(20), pictures(20)[:, 0], "labels have shape"),
        (pictures(20) // 255, np.arange(20) % 10, "all 0 or 1"),
    ],
)
def test_wrong_content(
    tmp_path: Path, write_idx, mnist_files, images: np.ndarray, labels: np.ndarray, text: str
) -> None:
    mnist_files(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert text in caught.value.line() and str(tmp_path) in caught.value.where


def test_fifo_does_not_hang(tmp_path: Path, mnist_files) -> None:
    mnist_files(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="not a regular file"):
        load(tmp_path)
