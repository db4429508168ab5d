"""Batches filled up to a few sizes, so that a shrinking number of rows meets code that exists already."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 8


def bucket(rows: int) -> int:
    """The size to which `padded` fills up `rows` rows: the next multiple of a grain, 8 at least.

    The grain is a sixteenth of the power of two above `rows`, 4 at least. Survivors shrink one by one.
    Without buckets each size would get kernels of its own (oneDNN keeps about a thousand, hundreds of MiB),
    and a row's rounding would depend on how many others are left.
    """
    grain = max(4, (1 << max(rows, 1).bit_length()) >> 4)
    return max(_LEAST, -(-rows // grain) * grain)


def power_of_two(rows: int) -> int:
    """The smallest power of two >= `rows` >= 1, 8 at least: the fewest sizes, for compiled code."""
    return max(_LEAST, 1 << (rows - 1).bit_length())


def padded(x: Tensor) -> Tensor:
    """x [R, ...] with its last row repeated up to `bucket(R)` rows; x itself if it has them, or no row."""
    return filled(x, bucket(len(x)))


def filled(x: Tensor, size: int) -> Tensor:
    """x [R, ...] with its last row repeated up to `size` rows; x itself if it has them, or no row."""
    missing = size - len(x)
    if not missing or not len(x):
        return x
    return torch.cat((x, x[-1:].expand(missing, *x.shape[1:])))
