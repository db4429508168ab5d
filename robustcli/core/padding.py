"""Batches filled up to a few sizes, so that kernels and compiled code of one size are used again."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 8
_SMALL = 64  # rows up to which a GPU is not full


def bucket(rows: int, *, few: bool = False) -> int:
    """max(8, g * ceil(rows / g)), g = max(4, P / 16), P the least power of two > rows: a size >= rows.

    The number of survivors shrinks one by one. Without buckets each number would get kernels of its own, of
    which oneDNN keeps about a thousand, hundreds of MiB. The rounding of a row would also depend on how many
    others are left.

    few: g = max(4, P / 4) up to 64 rows and P / 8 above, which leaves 15 sizes up to 256. On CUDA each size
    costs seconds: cuDNN times its kernels for it, and a graph is recorded for it. Small batches take as long
    as large ones there.
    """
    power = 1 << max(rows, 1).bit_length()
    share = 16
    if few:
        share = 4 if rows <= _SMALL else 8
    grain = max(4, power // share)
    return max(_LEAST, -(-rows // grain) * grain)


def power_of_two(rows: int) -> int:
    """The smallest power of two >= `rows` >= 1, 8 at least: the fewest sizes, for compiled code."""
    return max(_LEAST, 1 << (rows - 1).bit_length())


def padded(x: Tensor) -> Tensor:
    """x [R, ...] with its last row repeated up to `bucket(R)` rows, on CUDA of few sizes; see `filled`."""
    return filled(x, padded_rows(x))


def padded_rows(x: Tensor) -> int:
    """Rows of `padded(x)`, for x with R >= 1 rows."""
    return bucket(len(x), few=x.is_cuda)


def filled(x: Tensor, size: int) -> Tensor:
    """x [R, ...] with its last row repeated up to `size` >= R rows; x itself if R = `size` or R = 0."""
    missing = size - len(x)
    if not missing or not len(x):
        return x
    return torch.cat((x, x[-1:].expand(missing, *x.shape[1:])))
