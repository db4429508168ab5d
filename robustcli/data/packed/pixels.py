"""Arrays as others store them, as tensors of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.errors import DataError


def to_pixels(array: Any, config: DataConfig, where: str) -> Tensor:
    """The array as a contiguous tensor [N, C, H, W]; float64 and uint16 as float32.

    Shape and range are checked later.
    """
    if array.dtype.kind not in "uif":
        hint = "store uint8 0..255, uint16, or float in [0, 1]"
        raise DataError(f"pixels are {array.dtype}", where=where, hint=hint, code="E-RANGE")
    array = _channels_first(array)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _from_16_bits(array, config.max_value or 65535, where)
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        hint = _integer_hint(array)
        raise DataError(f"pixels are {array.dtype}", where=where, hint=hint, code="E-RANGE")
    dtype = array.dtype.newbyteorder("=")
    if array.dtype.kind == "f" and array.dtype.itemsize != 2:
        dtype = np.dtype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))


def _channels_first(array: Any) -> Any:
    """[N, C, H, W] of [N, H, W, C] and of [N, H, W]; what is neither stays as it is."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        return array.transpose(0, 3, 1, 2)
    return array


def _from_16_bits(array: Any, white: int, where: str) -> Tensor:
    """x = v / white as float32."""
    highest = int(array.max(initial=0))
    if highest > white:
        what = f"the largest pixel is {highest}, above data.max_value={white}"
        raise DataError(what, where=where, hint="raise data.max_value", code="E-RANGE")
    if array.size and highest * 255 <= white:
        what = f"the largest pixel is {highest}, which is black where white is {white}"
        hint = f"say what white is: data.max_value={_likely_white(highest, white)}"
        raise DataError(what, where=where, hint=hint, code="E-RANGE")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)) / np.float32(white))


def _likely_white(highest: int, white: int) -> int:
    """255 for bytes in a wider type, else the largest number of as many bits as the largest pixel has."""
    if highest <= 255 < white:
        return 255
    return int(2 ** max(1, highest.bit_length()) - 1)


def _integer_hint(array: Any) -> str:
    """What to store in place of wide integers, so that nothing is cut off."""
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low >= 0 and high <= 255:
        return "they fit into bytes: store x.astype(numpy.uint8)"
    if low >= 0 and high <= 65535:
        return "store x.astype(numpy.uint16), and data.max_value=… says what white is"
    return "store uint8 0..255, uint16, or float in [0, 1]"
