from __future__ import annotations

import numpy as np
import pytest
import torch

from robustcli.data.check import (
    check_classes,
    check_labels,
    check_range,
    check_shape,
    check_split,
)
from robustcli.errors import DataError


def message(call, *args, **options) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **options)
    error = caught.value
    assert error.exit_code == 3 and error.what and error.where and error.hint, (
        "an error says what, where and what to do"
    )
    return error.line()


def int_labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (int_labels(0, 1, -100), "label -100 at index 2 not in [0,9]"),
        (int_labels(0, -1), "label -1 at index 1 not in [0,9]"),
        (int_labels(10, 0, 11), "label 10 at index 0 not in [0,9] (+1 more)"),
        (int_labels(0, 2**40), f"label {2**40} at index 1"),
        (np.array([2**63], dtype=np.uint64), f"label {2**63} at index 0"),
        (torch.tensor([3, 12]), "label 12 at index 1"),
        (np.array([0.0, 1.0]), "labels are float64"),
        (torch.tensor([0.5], dtype=torch.bfloat16), "labels are bfloat16"),
        (np.array([True, False]), "labels are bool"),
        (torch.tensor([True]), "labels are bool"),
        (np.array(["cat"]), "not integers"),
        (np.zeros((3, 10), dtype=np.int64), "labels have shape [3, 10]"),
        (np.zeros((3, 1), dtype=np.int64), "labels have shape [3, 1]"),
        (np.int64(3), "labels have shape []"),
    ],
)
def test_wrong_labels(labels: object, text: str) -> None:
    assert text in message(check_labels, labels, 10)


def test_label_error_names_the_file() -> None:
    assert "label 10 at index 1 (b.png) not in [0,9]" in message(
        check_labels, int_labels(0, 10), 10, paths=["a.png", "b.png"]
    )


def test_label_count() -> None:
    assert "3 labels for 4 images" in message(check_labels, int_labels(0, 1, 1), 2, count=4)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint64", ">i2"])
def test_integer_labels_become_int64(dtype: str) -> None:
    got = check_labels(np.array([2, 0, 1], dtype=dtype), 3)
    assert got.dtype == torch.int64 and got.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (int_labels(1, 2, 3), "no label is 0; the smallest is 1"),
        (int_labels(0, 1, 3), "label 3 at index 2 not in [0,1]"),
        (int_labels(0, 1, 2**40), "not in [0,1]"),
    ],
)
def test_labels_without_names_must_have_no_gap(labels: np.ndarray, text: str) -> None:
    assert text in message(check_labels, labels, None)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (torch.tensor([0.0, 255.0]), "looks like 0..255"),
        (torch.tensor([-2.1, 2.6]), "looks normalised"),
        (torch.tensor([0.0, 1.2]), "not on the [0,1] scale"),
        (torch.tensor([0.0, 1e9]), "not on the [0,1] scale"),
        (torch.tensor([0.0, 1 / 255]), "divided by 255 twice"),
        (torch.tensor([0.0, float("nan"), 0.5]), "1 pixels are NaN or infinite"),
        (torch.tensor([float("inf"), -float("inf")]), "2 pixels are NaN or infinite"),
        (torch.tensor([0, 1], dtype=torch.uint8), "uint8 pixels are all 0 or 1"),
        (torch.tensor([0, 255]), "pixels are int64"),
    ],
)
def test_wrong_range(pixels: torch.Tensor, text: str) -> None:
    assert text in message(check_range, pixels)


def test_normalised_hint_names_the_fix() -> None:
    assert "put Normalize inside the model" in message(check_range, torch.tensor([-2.0, 2.0]))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.tensor([0.0, 1.0]),
        torch.tensor([-1e-7, 1 + 1e-7]),
        torch.tensor([0, 2], dtype=torch.uint8),
        torch.tensor([0.1, 0.9], dtype=torch.float16),
        torch.empty(0),
    ],
)
def test_good_range(pixels: torch.Tensor) -> None:
    check_range(pixels)


def test_black_batch_is_allowed_when_asked() -> None:
    check_range(torch.zeros(2, 3), dark=False)
    check_range(torch.zeros(2, 3, dtype=torch.uint8), dark=False)


@pytest.mark.parametrize(
    ("got", "expected", "text"),
    [
        ((1, 28, 28), (3, 32, 32), "expected 3x32x32, got 1x28x28"),
        ((32, 32, 3), None, "looks like HWC"),
        ((32, 32, 3), (3, 32, 32), "looks like HWC"),
        ((4, 8, 8), None, "drop the alpha channel"),
        ((2, 8, 8), None, "got 2x8x8"),
        ((28, 28), None, "x[:, None]"),
        ((784,), None, "reshape"),
        ((3, 0, 0), None, "got 3x0x0"),
        ((3, 8, 9), None, "not square: 3x8x9"),
    ],
)
def test_wrong_shape(got: tuple[int, ...], expected: tuple[int, ...] | None, text: str) -> None:
    assert text in message(check_shape, got, expected)


def test_good_shape() -> None:
    assert check_shape((3, 8, 8), (3, 8, 8)) == (3, 8, 8)


def test_classes_are_compared_by_name() -> None:
    check_classes(("cat", "dog"), ("cat", "dog"), where="test")
    renamed = message(check_classes, ("cat", "dog"), ("cat", "wolf"), where="test")
    assert "missing 'dog'" in renamed and "unexpected 'wolf'" in renamed
    assert "3 classes, 2 in train: unexpected 'emu'" in message(
        check_classes, ("cat", "dog"), ("cat", "dog", "emu"), where="test"
    )
    assert "another order" in message(check_classes, ("cat", "dog"), ("dog", "cat"), where="test")


def test_empty_split_and_class() -> None:
    assert "the val split is empty" in message(
        check_split, torch.tensor([], dtype=torch.int64), ("a",), "val", where="x"
    )
    assert "no image of class 'b' in the train split" in message(
        check_split, torch.tensor([0, 2]), ("a", "b", "c"), "train", where="x"
    )
    assert check_split(torch.tensor([0, 2]), ("a", "b", "c"), "val", where="x", every_class=False) == ["b"]
    assert check_split(torch.tensor([0, 1]), ("a", "b"), "train", where="x") == []
