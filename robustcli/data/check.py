"""Checks of data from outside, before any work starts: labels, range, shape, classes.

Every fault is a DataError (exit 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.data.layout.words import part_inside
from robustcli.errors import DataError

_MANY, _DIM = 16, 0.25  # images whose brightest pixel is looked at, and where it is too dark
_SLACK = 1e-6  # float rounding allowed outside [0, 1]
_LABEL_HINTS = {-100: "-100 is the ignore label of some losses: drop those samples"}


def check_labels(
    labels: Any,
    num_classes: int | None,
    *,
    where: str = "labels",
    paths: Sequence[str] | None = None,
    count: int | None = None,
) -> Tensor:
    """The labels as int64 [N] with values in [0, K).

    Args:
        labels: numpy array or tensor from outside.
        num_classes: K; None when the labels say it: then they must be 0 to K - 1 without a gap.
        where: file and key, for the message.
        paths: file of each label, for the message.
        count: how many labels there must be; None for any number.

    Raises:
        DataError: float, bool or text labels, wrong shape or length, a value out of range (-100 too).
    """
    array = _integers(labels, where)
    if array.ndim != 1:
        hint = "one class index per image, not one-hot: y.argmax(1), or y.squeeze(1)"
        raise DataError(f"labels have shape {list(array.shape)}, expected [N]", where=where, hint=hint)
    if count is not None and len(array) != count:
        what = f"{len(array)} labels for {count} images"
        raise DataError(what, where=where, hint="images and labels must have one length")
    if num_classes is None:
        num_classes = _consecutive(array, where)
    wrong = np.flatnonzero((array < 0) | (array >= num_classes))
    if len(wrong):
        raise _out_of_range(array, wrong, num_classes, where, paths)
    return torch.from_numpy(array.astype(np.int64))


def _integers(labels: Any, where: str) -> Any:
    """The labels as a numpy array, when they are integers."""
    if isinstance(labels, Tensor):
        _check_integer(str(labels.dtype).removeprefix("torch."), where)
        return labels.detach().cpu().numpy()
    array = np.asarray(labels)
    _check_integer(array.dtype.name, where)
    return array


def _check_integer(dtype: str, where: str) -> None:
    if not dtype.startswith(("int", "uint")):
        hint = "store class indices as int64; bool and float labels are refused"
        raise DataError(f"labels are {dtype}, not integers", where=where, hint=hint)


def _consecutive(array: Any, where: str) -> int:
    """K such that 0 to K - 1 all occur and K does not."""
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


def _out_of_range(
    array: Any, wrong: Any, num_classes: int, where: str, paths: Sequence[str] | None
) -> DataError:
    index = int(wrong[0])
    value, place, more = int(array[index]), f"index {index}", ""
    if paths is not None:
        place += f" ({paths[index]})"
    if len(wrong) > 1:
        more = f" (+{len(wrong) - 1} more)"
    return DataError(
        f"label {value} at {place} not in [0,{num_classes - 1}]{more}",
        where=where,
        hint=_LABEL_HINTS.get(value, "labels are 0 … K - 1 without gaps"),
        code="E-LABEL",
    )


def check_shape(
    got: Sequence[int], expected: Sequence[int] | None = None, *, where: str = "images"
) -> tuple[int, int, int]:
    """(C, H, W) of one image: 1 or 3 channels, square, not empty, and as expected.

    Raises:
        DataError: E-SHAPE, ``expected 3x32x32, got 1x28x28``.
    """
    size = "x".join(str(n) for n in got)
    if expected is not None and tuple(got) != tuple(expected):
        wanted = "x".join(str(n) for n in expected)
        raise _shape_fault(f"expected {wanted}, got {size}", where, _shape_hint(got))
    if len(got) != 3 or 0 in got or got[0] not in (1, 3):
        raise _shape_fault(f"expected images of 1xHxW or 3xHxW, got {size}", where, _shape_hint(got))
    if got[1] != got[2]:
        raise _shape_fault(f"images are not square: {size}", where, _square_hint(got[1], got[2]))
    return got[0], got[1], got[2]


def _square_hint(height: int, width: int) -> str:
    side = min(height, width)
    return (
        f"files: data.size={side} resizes the short side to {side} and crops the centre; "
        f"arrays: x[..., :{side}, :{side}], or pad them"
    )


def _shape_fault(what: str, where: str, hint: str) -> DataError:
    return DataError(what, where=where, hint=hint, code="E-SHAPE")


def _shape_hint(got: Sequence[int]) -> str:
    """The likely cause of a wrong shape, and what to do about it."""
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
        dark: also refuse max <= 1/255, which pixels divided by 255 twice have. Turn it off for a few images,
            which may be black.

    Raises:
        DataError: E-RANGE, with the likely cause and its fix.
    """
    if x.numel() == 0:
        return
    if x.is_floating_point():
        _check_floats(x, where, dark)
    elif x.dtype != torch.uint8:
        dtype = str(x.dtype).removeprefix("torch.")
        raise _range_fault(f"pixels are {dtype}", where, "store uint8 0..255, or float in [0, 1]")
    elif dark and int(x.max()) <= 1:
        raise _range_fault("uint8 pixels are all 0 or 1", where, "store 0..255 (multiply by 255)")


def _check_floats(x: Tensor, where: str, dark: bool) -> None:
    low, high = (float(v) for v in torch.aminmax(x))  # NaN passes through
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~torch.isfinite(x)).sum())
        raise _range_fault(f"{count} pixels are NaN or infinite", where, "repair or remove these images")
    if low < -_SLACK or high > 1 + _SLACK:
        likely, hint = _wrong_scale(low, high)
        raise _range_fault(f"pixels in [{low:g}, {high:g}]: {likely}", where, hint)
    if dark and high <= 1 / 255 + _SLACK:
        raise _range_fault(f"largest pixel is {high:g}: divided by 255 twice?", where, "divide by 255 once")


def _wrong_scale(low: float, high: float) -> tuple[str, str]:
    """The likely scale of pixels that leave [0, 1], and what to do about it."""
    if low >= 0 and 1.5 < high <= 255:
        return "looks like 0..255", "divide by 255, or store uint8"
    hint = "put Normalize inside the model; pixels are in [0, 1]"
    if low < -_SLACK:
        return "looks normalised", hint
    return "not on the [0,1] scale", hint


def dim_warning(x: Tensor, part: str, *, deep: bool) -> list[str]:
    """A warning where the brightest pixel of many images is under a quarter: the range is probably wrong.

    Args:
        x: pixels uint8, or float in [0, 1], [N, C, H, W].
        part: name of the split.
        deep: whether they were stored with 16 bits, so that data.max_value mends it.
    """
    if len(x) < _MANY:
        return []
    scale = 1.0 if x.is_floating_point() else 255.0
    brightest = float(x.max()) / scale
    if brightest >= _DIM or (brightest == 0 and not deep):
        return []
    remedy = "if white is brighter, rescale them"
    if deep:
        bits = next(
            bits for bits in range(8, 17) if round((2**bits - 1) / 65535 * 255) >= round(brightest * 255)
        )
        remedy = f"images of {bits} bits in 16-bit files need data.max_value={2**bits - 1}"
    return [f"{part}: the brightest pixel of {len(x)} images is {brightest:.3f} of 1: {remedy}"]


def _range_fault(what: str, where: str, hint: str) -> DataError:
    return DataError(what, where=where, hint=hint, code="E-RANGE")


def check_classes(expected: Sequence[str], got: Sequence[str], *, where: str, against: str = "train") -> None:
    """The class names are the same, in the same order.

    Raises:
        DataError: E-CLASS, both numbers, the missing and the unexpected names.
    """
    differing = {
        "missing": sorted(set(expected) - set(got)),
        "unexpected": sorted(set(got) - set(expected)),
    }
    listed = "; ".join(f"{word} {_listed(names)}" for word, names in differing.items() if names)
    if listed:
        what = f"{len(got)} classes, {len(expected)} in {against}: {listed}"
        raise DataError(what, where=where, hint=f"the class names must be those of {against}", code="E-CLASS")
    if tuple(expected) != tuple(got):
        what = f"the classes come in another order than in {against}"
        raise DataError(what, where=where, hint="sort them the same way", code="E-CLASS")


def check_two_classes(classes: Sequence[str], *, where: str) -> None:
    """There are two classes or more.

    Raises:
        DataError: E-CLASS.
    """
    if len(classes) > 1:
        return
    what = f"only one class, {classes[0]!r}" if classes else "no class"
    hint = f"a classifier needs two{_deeper(where, ''.join(classes))}"
    raise DataError(what, where=where, hint=hint, code="E-CLASS")


def _deeper(where: str, name: str) -> str:
    """What to say where the classes may lie in the folder `name`, of the root or of its splits."""
    root = Path(where)
    if not name or not root.is_dir():
        return ""
    if (root / name).is_dir():
        return f"; if the classes lie deeper, name that folder: {root / name}"
    tops = [path.parent.name for path in sorted(root.glob(f"*/{escape(name)}"))]
    told = [f"data.splits.{part}={top}/{name}" for top in tops if (part := part_inside(top))]
    return f"; if the classes lie deeper, say so: {' '.join(told)}" if told else ""


def _listed(names: Sequence[str]) -> str:
    """The first five names."""
    return ", ".join(repr(name) for name in names[:5]) + (" …" if len(names) > 5 else "")


def check_split(
    labels: Tensor, classes: Sequence[str], part: str, *, where: str, every_class: bool = True
) -> list[str]:
    """Check that the split is not empty; give the names of the classes that have no image in it.

    Raises:
        DataError: E-EMPTY; with `every_class` also when a class has no image.
    """
    if len(labels) == 0:
        remedies = {"val": "raise data.val_fraction", "test": "raise data.test_fraction"}
        remedy = remedies.get(part, "lower data.val_fraction or data.test_fraction")
        hint = f"add images, or {remedy}"
        raise DataError(f"the {part} split is empty", where=where, hint=hint, code="E-EMPTY")
    present = torch.bincount(labels, minlength=len(classes))
    lacking = [classes[k] for k in torch.nonzero(present == 0).flatten().tolist()]
    if lacking and every_class:
        what = f"no image of class {_listed(lacking)} in the {part} split"
        hint = "add images of it (two or more, for a seeded split), or remove the class"
        raise DataError(what, where=where, hint=hint, code="E-EMPTY")
    return lacking
