"""Validation of data from outside, before any work starts: labels, range, shape, classes. Every fault is a DataError (exit 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.errors import DataError

_SLACK = 1e-6  # float rounding allowed outside [0, 1]


def check_labels(
    labels: Any,
    num_classes: int | None,
    *,
    where: str = "labels",
    paths: Sequence[str] | None = None,
    count: int | None = None,
) -> Tensor:
    """int64 [N] with values in [0, K).

    Args:
        labels: numpy array or tensor from outside.
        num_classes: K; None finds it: the labels must be 0 … K - 1 without a gap.
        where: file and key, for the message.
        paths: file of each label, for the message.
        count: how many there must be.

    Raises:
        DataError: float, bool or text labels, wrong shape or length, a value out of range (-100 too).
    """
    dtype = (
        str(labels.dtype).removeprefix("torch.")
        if isinstance(labels, Tensor)
        else np.asarray(labels).dtype.name
    )
    if not dtype.startswith(("int", "uint")):
        raise DataError(
            f"labels are {dtype}, not integers",
            where=where,
            hint="store class indices as int64; bool and float labels are refused",
        )
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1:
        hint = "one class index per image, not one-hot: y.argmax(1), or y.squeeze(1)"
        raise DataError(f"labels have shape {list(array.shape)}, expected [N]", where=where, hint=hint)
    if count is not None and len(array) != count:
        raise DataError(
            f"{len(array)} labels for {count} images",
            where=where,
            hint="images and labels must have one length",
        )
    if num_classes is None:
        num_classes = _consecutive(array, where)
    wrong = np.flatnonzero((array < 0) | (array >= num_classes))
    if len(wrong):
        index = int(wrong[0])
        value = int(array[index])
        file = f" ({paths[index]})" if paths is not None else ""
        hint = (
            "-100 is the ignore label of some losses: drop those samples"
            if value == -100
            else "labels are 0 … K - 1 without gaps"
        )
        more = f" (+{len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DataError(
            f"label {value} at index {index}{file} not in [0,{num_classes - 1}]{more}",
            where=where,
            hint=hint,
            code="E-LABEL",
        )
    return torch.from_numpy(array.astype(np.int64))


def _consecutive(array: Any, where: str) -> int:
    """K such that 0 … K - 1 all occur and K does not."""
    present = set(np.unique(array).tolist())
    count = next(k for k in range(len(present) + 1) if k not in present)
    if count == 0 and len(array):
        raise DataError(
            f"no label is 0; the smallest is {int(array.min())}",
            where=where,
            hint="labels are 0 … K - 1: subtract the smallest",
            code="E-LABEL",
        )
    return count


def check_shape(
    got: Sequence[int], expected: Sequence[int] | None = None, *, where: str = "images"
) -> tuple[int, int, int]:
    """(C, H, W) of one image: 1 or 3 channels, square, not empty, and as expected.

    Raises:
        DataError: E-SHAPE, ``expected 3x32x32, got 1x28x28``.
    """
    size = "x".join(str(n) for n in got)
    if expected is not None and tuple(got) != tuple(expected):
        raise DataError(
            f"expected {'x'.join(str(n) for n in expected)}, got {size}",
            where=where,
            hint=_shape_hint(got),
            code="E-SHAPE",
        )
    if len(got) != 3 or 0 in got or got[0] not in (1, 3):
        raise DataError(
            f"expected images of 1xHxW or 3xHxW, got {size}",
            where=where,
            hint=_shape_hint(got),
            code="E-SHAPE",
        )
    if got[1] != got[2]:
        raise DataError(
            f"images are not square: {size}",
            where=where,
            hint="data.size=N for folders; crop or pad arrays to a square",
            code="E-SHAPE",
        )
    return got[0], got[1], got[2]


def _shape_hint(got: Sequence[int]) -> str:
    if len(got) == 3 and got[2] in (1, 3) and got[0] not in (1, 3):
        return "looks like HWC: x.transpose(0, 3, 1, 2)"
    if len(got) == 2:
        return "add the channel axis: x[:, None]"
    if len(got) == 1:
        return "reshape to [N, C, H, W]"
    if len(got) == 3 and got[0] in (2, 4):
        return "drop the alpha channel"
    return "make all images one size and one number of channels"


def check_range(x: Tensor, *, where: str = "images", dark: bool = True) -> None:
    """Pixels are uint8, or float with -1e-6 <= x <= 1 + 1e-6, finite.

    Args:
        x: any shape.
        where: file and key, or the batch, for the message.
        dark: also refuse max <= 1/255 (divided by 255 twice); off for a few images, which may be black.

    Raises:
        DataError: E-RANGE, with the likely cause and its fix.
    """
    if x.numel() == 0:
        return
    if x.dtype == torch.uint8:
        if dark and int(x.max()) <= 1:
            raise DataError(
                "uint8 pixels are all 0 or 1",
                where=where,
                hint="store 0..255 (multiply by 255)",
                code="E-RANGE",
            )
        return
    if not x.is_floating_point():
        raise DataError(
            f"pixels are {str(x.dtype).removeprefix('torch.')}",
            where=where,
            hint="store uint8 0..255, or float in [0, 1]",
            code="E-RANGE",
        )
    low, high = (float(v) for v in torch.aminmax(x))  # NaN passes through
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~torch.isfinite(x)).sum())
        raise DataError(
            f"{count} pixels are NaN or infinite",
            where=where,
            hint="repair or remove these images",
            code="E-RANGE",
        )
    if low < -_SLACK or high > 1 + _SLACK:
        whole = low >= 0 and 1.5 < high <= 255
        what = (
            "looks like 0..255"
            if whole
            else "looks normalised"
            if low < -_SLACK
            else "not on the [0,1] scale"
        )
        hint = (
            "divide by 255, or store uint8"
            if whole
            else "put Normalize inside the model; pixels are in [0, 1]"
        )
        raise DataError(f"pixels in [{low:g}, {high:g}]: {what}", where=where, hint=hint, code="E-RANGE")
    if dark and high <= 1 / 255 + _SLACK:
        raise DataError(
            f"largest pixel is {high:g}: divided by 255 twice?",
            where=where,
            hint="divide by 255 once",
            code="E-RANGE",
        )


def check_classes(expected: Sequence[str], got: Sequence[str], *, where: str, against: str = "train") -> None:
    """The class names are the same, compared by name.

    Raises:
        DataError: E-CLASS, both numbers, the missing and the unexpected names.
    """
    missing, extra = (sorted(set(a) - set(b)) for a, b in ((expected, got), (got, expected)))
    if missing or extra:
        parts = [
            f"{word} {_names(names)}"
            for word, names in (("missing", missing), ("unexpected", extra))
            if names
        ]
        what = f"{len(got)} classes, {len(expected)} in {against}: {'; '.join(parts)}"
        raise DataError(what, where=where, hint=f"the class names must be those of {against}", code="E-CLASS")
    if tuple(expected) != tuple(got):
        raise DataError(
            f"the classes come in another order than in {against}",
            where=where,
            hint="sort them the same way",
            code="E-CLASS",
        )


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (" …" if len(names) > 5 else "")


def check_split(
    labels: Tensor, classes: Sequence[str], part: str, *, where: str, every_class: bool = True
) -> list[str]:
    """The split is not empty and has every class; returns the names of the classes it lacks (when `every_class` is off).

    Raises:
        DataError: E-EMPTY.
    """
    if len(labels) == 0:
        hint = {"val": "raise data.val_fraction", "test": "raise data.test_fraction"}.get(
            part, "lower data.val_fraction or data.test_fraction"
        )
        raise DataError(
            f"the {part} split is empty", where=where, hint=f"add images, or {hint}", code="E-EMPTY"
        )
    present = torch.bincount(labels, minlength=len(classes))
    lacking = [classes[k] for k in torch.nonzero(present == 0).flatten().tolist()]
    if lacking and every_class:
        hint = "add images of it (two or more, for a seeded split), or remove the class"
        raise DataError(
            f"no image of class {_names(lacking)} in the {part} split", where=where, hint=hint, code="E-EMPTY"
        )
    return lacking
