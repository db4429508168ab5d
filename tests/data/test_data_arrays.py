"""npz, digits, fake."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustcli.config.sections import Augment, DataConfig
from robustcli.data.datasets import load_data
from robustcli.data.sets.fake import images as fake_images
from robustcli.errors import ConfigError, DataError

CPU = torch.device("cpu")


def images(n: int, shape: tuple[int, ...] = (3, 6, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def whole(**changes: Any) -> dict[str, Any]:
    arrays = {
        "x_train": images(20),
        "y_train": np.arange(20) % 2,
        "x_test": images(6, seed=1),
        "y_test": np.arange(6) % 2,
        **changes,
    }
    return {key: value for key, value in arrays.items() if value is not None}


def load(path: Path, **options: Any):
    return load_data(DataConfig(name=f"npz:{path}", **options), allow_download=False)


@pytest.fixture
def saved(tmp_path: Path):
    def save(**arrays: Any) -> Path:
        np.savez(tmp_path / "set.npz", **arrays)
        return tmp_path / "set.npz"

    return save


def refused(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    error = caught.value
    assert error.exit_code == 3 and error.what and str(path) in error.where and error.hint
    return error


def pixels(split) -> torch.Tensor:
    ((x, _, _),) = split.stream([torch.arange(len(split))], CPU)
    return x


def test_npz_uint8(saved) -> None:
    bundle = load(saved(**whole()))
    assert (
        bundle.name == "npz:set.npz"
        and bundle.classes == ("0", "1")
        and bundle.shape == (3, 6, 6)
        and bundle.presets == {}
    )
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (18, 2, 6)
    assert torch.equal(pixels(bundle.test), torch.from_numpy(images(6, seed=1)).float() / 255)
    assert bundle.test.labels.tolist() == [0, 1, 0, 1, 0, 1] and bundle.test.ids.tolist() == list(range(6))


def test_digest_sees_labels_and_pixels(saved) -> None:
    first = load(saved(**whole())).digest
    assert load(saved(**whole(y_test=1 - np.arange(6) % 2))).digest != first
    assert load(saved(**whole(x_test=images(6, seed=2)))).digest != first
    assert load(saved(**whole())).digest == first


def test_npz_val_and_names(saved) -> None:
    bundle = load(
        saved(
            **whole(
                x_val=images(4), y_val=np.arange(4) % 2, classes=np.array(["cat", "dog"]), extra=np.zeros(3)
            )
        )
    )
    assert (len(bundle.train), len(bundle.val)) == (20, 4) and bundle.classes == ("cat", "dog")
    assert "arrays left aside: extra" in bundle.notes


def test_npz_x_y_is_split_by_seed(saved) -> None:
    bundle = load(saved(x=images(40), y=np.arange(40) % 4))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (27, 3, 10) or len(bundle.val) == 4
    ids = [split.ids.tolist() for split in (bundle.train, bundle.val, bundle.test)]
    assert sorted(sum(ids, [])) == list(range(40))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
def test_npz_float(saved, dtype: str) -> None:
    x = (images(20) / np.float64(255)).astype(dtype)
    bundle = load(saved(**whole(x_train=x)))
    ids = bundle.train.ids
    assert torch.equal(
        pixels(bundle.train), torch.from_numpy(x.astype(x.dtype.newbyteorder("="))).float()[ids]
    )


def test_float_rounding_outside_the_box_is_clamped(saved) -> None:
    x = np.linspace(-5e-7, 1 + 5e-7, 20 * 108, dtype=np.float64).reshape(20, 3, 6, 6)
    got = pixels(load(saved(**whole(x_train=x))).train)
    assert float(got.min()) >= 0 and float(got.max()) <= 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y_train": np.arange(20) % 2 * 2}, "label 2 at index 1 not in [0,0]"),
        ({"y_test": np.array([0, 1, 0, 1, 0, 2])}, "label 2 at index 5 not in [0,1]"),
        ({"y_train": np.where(np.arange(20) == 7, -100, np.arange(20) % 2)}, "label -100 at index 7"),
        ({"y_train": np.where(np.arange(20) == 7, 2**40, np.arange(20) % 2)}, f"label {2**40} at index 7"),
        ({"y_train": (np.arange(20) % 2).astype(float)}, "labels are float64"),
        ({"y_train": np.arange(20) % 2 == 0}, "labels are bool"),
        ({"y_train": np.eye(20, dtype=int)}, "labels have shape [20, 20]"),
        ({"y_train": np.arange(19) % 2}, "19 labels for 20 images"),
        ({"y_train": 1 + np.arange(20) % 2}, "no label is 0; the smallest is 1"),
        (
            {"y_train": np.zeros(20, dtype=int), "classes": np.array(["a", "b"])},
            "no image of class 'b' in the",
        ),
        ({"x_test": images(0), "y_test": np.zeros(0, dtype=int)}, "the test split is empty"),
        ({"x_train": images(0), "y_train": np.zeros(0, dtype=int)}, "not in [0,-1]"),
        ({"x_train": images(20).astype(np.float32)}, "looks like 0..255"),
        ({"x_train": images(20) / 255.0 / 255.0}, "divided by 255 twice"),
        ({"x_train": (images(20) / 255.0 - 0.5) / 0.25}, "looks normalised"),
        ({"x_train": np.where(images(20) == 9, np.nan, 0.5)}, "NaN"),
        ({"x_train": images(20).astype(np.int64)}, "pixels are int64"),
        ({"x_train": images(20) // 255}, "all 0 or 1"),
        ({"x_train": images(20) > 9}, "pixels are bool"),
        ({"x_train": images(20).astype("U3")}, "pixels are <U3"),
        ({"x_train": images(20, (6, 6, 3, 1))}, "got 6x6x3x1"),
        ({"x_train": images(20, (108,))}, "reshape"),
        ({"x_train": images(20, (4, 6, 6))}, "alpha"),
        ({"x_train": images(20, (3, 0, 0))}, "3x0x0"),
        ({"x_train": images(20, (3, 6, 7))}, "not square"),
        ({"x_test": images(6, (1, 6, 6))}, "expected 3x6x6, got 1x6x6"),
        ({"x_train": np.uint8(3)}, "got "),
        ({"classes": np.array(["a", "a"])}, "`classes`"),
        ({"classes": np.array(["a", "b\x1b[0m"])}, "`classes`"),
        ({"classes": np.arange(2)}, "`classes`"),
        ({"classes": np.array(["a", "b", "c"])}, "no image of class 'c'"),
        ({"y_test": None}, "no array y_test"),
        (
            {"x_train": None, "y_train": None, "x_val": images(2), "y_val": np.arange(2)},
            "no images to train on: only val and test",
        ),
        (
            {"x_train": None, "y_train": None, "x_test": None, "y_test": None, "foo": np.zeros(1)},
            "no array x and y",
        ),
    ],
)
def test_wrong_npz(saved, changes: dict[str, Any], text: str) -> None:
    error = refused(saved(**whole(**changes)))
    assert text in error.line()


def test_npz_never_unpickles(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object), y=np.zeros(1, dtype=int))
    assert "pickle" in refused(tmp_path / "a.npz").what
    assert not (tmp_path / "ran").exists()


def npy(shape: str, body: bytes) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(-1,)", "('a',)", "(2,", "(9,)", "[3]", "(True,)"])
def test_lying_header_allocates_nothing(tmp_path: Path, shape: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, b"abc"))
        archive.writestr("y.npy", npy("(3,)", b"\0\0\0"))
    assert "not a readable .npz file" in refused(tmp_path / "a.npz").what


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(f"({65 * 2**20},)", bytes(65 * 2**20)))
    assert "bomb" in refused(tmp_path / "a.npz").what


def test_compressed_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **whole())
    np.savez(tmp_path / "b.npz", **whole())
    assert load(tmp_path / "a.npz").digest == load(tmp_path / "b.npz").digest


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_npz_never_raises_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **whole())
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.npz"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        load(path)
    except DataError as error:
        assert str(path) in error.where


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        lambda p: __import__("os").mkfifo(p),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"x" * 99),
        lambda p: None,
    ],
)
def test_not_a_file(tmp_path: Path, make) -> None:
    make(tmp_path / "a.npz")
    refused(tmp_path / "a.npz")


def test_arrays_cannot_stream_or_resize(saved) -> None:
    assert "data.storage=stream needs image files" in refused(saved(**whole()), storage="stream").what
    assert "data.size=9, but the images are 6x6" in refused(saved(**whole()), size=9).what
    assert load(saved(**whole()), size=6).shape == (3, 6, 6)


def test_crop_larger_than_the_image(saved) -> None:
    with pytest.raises(ConfigError, match=r"data\.augment\.crop=6"):
        load(saved(**whole()), augment=Augment(crop=6, flip=False))


def test_digits() -> None:
    bundle = load_data(DataConfig(name="digits"), allow_download=False)
    assert bundle.shape == (1, 8, 8) and bundle.classes == tuple("0123456789") and bundle.num_classes == 10
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (1213, 135, 449)
    assert bundle.augment == Augment(crop=0, flip=False) and bundle.presets["linf"] == 0.1
    ids = torch.cat([bundle.train.ids, bundle.val.ids, bundle.test.ids])
    assert torch.equal(ids.sort().values, torch.arange(1797))
    from sklearn.datasets import load_digits

    stored = torch.from_numpy(load_digits().images).float() / 16
    assert float((pixels(bundle.test)[:, 0] - stored[bundle.test.ids]).abs().max()) <= 0.5 / 255 + 1e-6
    shares = (
        torch.bincount(bundle.test.labels).double()
        / torch.bincount(torch.from_numpy(load_digits().target)).double()
    )
    assert float((shares - 0.25).abs().max()) < 0.01


def test_split_seed_changes_the_digits_split_only() -> None:
    first, again, other = (
        load_data(DataConfig(name="digits", split_seed=s), allow_download=False) for s in (0, 0, 1)
    )
    assert torch.equal(first.test.ids, again.test.ids) and not torch.equal(first.test.ids, other.test.ids)
    assert first.digest == again.digest == other.digest, "the digest is of the stored data"


def test_fake() -> None:
    bundle = load_data(DataConfig(name="fake"), allow_download=False)
    assert bundle.shape == (3, 32, 32) and (
        len(bundle.train) + len(bundle.val),
        len(bundle.test),
        bundle.num_classes,
    ) == (1000, 200, 10)
    assert load_data(DataConfig(name="fake"), allow_download=False).digest == bundle.digest
    assert load_data(DataConfig(name="fake", split_seed=1), allow_download=False).digest != bundle.digest
    train, test = fake_images(20, 8, 0, 1), fake_images(20, 8, 0, 2)
    assert not np.array_equal(train, test), "the test noise is the training noise"
    assert np.array_equal(train[:10], fake_images(10, 8, 0, 1))


@pytest.mark.parametrize("size", [1, 5, 16])
def test_fake_is_learnable_in_any_size(size: int) -> None:
    bundle = load_data(DataConfig(name="fake", size=size), allow_download=False)
    x, test = pixels(bundle.train).flatten(1), pixels(bundle.test).flatten(1)
    means = torch.stack([x[bundle.train.labels == k].mean(0) for k in range(10)])
    right = float((torch.cdist(test, means).argmin(1) == bundle.test.labels).float().mean())
    assert bundle.shape == (3, size, size) and right > (0.3 if size == 1 else 0.99)
