"""Which samples, in which order: seeded, stratified, and independent of every global random state.

Random keys are raw Philox4x64 words (Salmon et al., SC 2011). numpy guarantees the words of a bit generator
for ever (NEP 19), unlike its `permutation` or `shuffle`, so a split made today is the same in ten years.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustcli.errors import DataError

_SAMPLE, _ORDER, _SPLIT = 1, 2, 3  # second half of the Philox key: one independent stream per purpose
Ints = npt.NDArray[np.int64]


def _keys(n: int, seed: int, stream: int, number: int = 0) -> npt.NDArray[np.uint64]:
    """n random 64-bit words, a function of (seed, stream, number)."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=np.array([0, 0, 0, number], dtype=np.uint64)).random_raw(n)
    return np.asarray(words, dtype=np.uint64)


def largest_remainder(counts: Ints, n: int) -> Ints:
    """floor(n * counts / N) for each class, then one more for the largest remainders, until the sum is n.

    This is Hamilton's method.

    Args:
        counts: int64 [K], samples per class, all >= 0, N = their sum.
        n: seats to give, 0 <= n <= N.

    Returns:
        int64 [K], each <= counts, sum n. Ties go to the lower class.
    """
    total = int(counts.sum())
    if not 0 <= n <= total:
        raise ValueError(f"n must be in [0, {total}], got {n}")
    if total == 0:
        return np.zeros_like(counts)
    share, remainder = np.divmod(counts * n, total)
    first = np.lexsort((np.arange(len(counts)), -remainder))[: n - int(share.sum())]
    share[first] += 1
    return np.asarray(share, dtype=np.int64)


def _draw(
    labels: Ints, quota: Ints, inverse: Ints, counts: Ints, seed: int, stream: int
) -> npt.NDArray[np.bool_]:
    """bool [N]: the `quota[k]` members of class k with the smallest random keys."""
    order = np.lexsort((_keys(len(labels), seed, stream), inverse))  # by class, random inside a class
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - starts[inverse[order]]
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[order] = rank < quota[inverse[order]]
    return chosen


def _classes(labels: Tensor) -> tuple[Ints, Ints, Ints]:
    """Labels [N], the rank [N] of each among the labels that occur, and how often each of these occurs."""
    values = labels.detach().cpu().numpy().astype(np.int64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return values, inverse.reshape(-1).astype(np.int64), counts.astype(np.int64)


def stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """n positions such that every class has its share n * N_k / N (largest remainder), chosen by seed.

    Args:
        labels: int64 [N].
        n: samples wanted, >= 1; n >= N gives all of them.
        seed: in [0, 2^63).

    Returns:
        int64 [min(n, N)], sorted positions without repetition.

    Raises:
        ValueError: n < 1 or a seed out of range.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if n >= len(labels):
        return torch.arange(len(labels))
    values, inverse, counts = _classes(labels)
    chosen = _draw(values, largest_remainder(counts, n), inverse, counts, seed, _SAMPLE)
    return torch.from_numpy(np.flatnonzero(chosen))


def stored_by_class(labels: Tensor) -> bool:
    """Whether samples of one class lie together: at most a quarter of the changes of label that chance makes.

    Args:
        labels: int64 [N], in stored order.
    """
    if len(labels) < 2:
        return False
    shares = torch.bincount(labels).double() / len(labels)
    runs = 1 + int((labels[1:] != labels[:-1]).sum())
    by_chance = 1 + (len(labels) - 1) * float(1 - shares.square().sum())
    return runs <= by_chance / 4


def train_order(n: int, seed: int, epoch: int) -> Tensor:
    """int64 [n]: a permutation of 0 to n - 1, a function of (seed, epoch) and of nothing else."""
    keys = _keys(n, seed, _ORDER, epoch)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))


def split_by_seed(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, part): part holds round(fraction * N) samples, every class by its share.

    Args:
        labels: int64 [N].
        fraction: share of `part`, in [0, 1].
        seed: in [0, 2^63).

    Returns:
        two int64 vectors of sorted positions, disjoint, together 0 to N - 1. With a fraction between 0 and 1
        every class of two or more samples is in both. A class whose share rounds to none gives one all the
        same, so `part` may be a little larger than asked. A class of one sample stays in `rest`.

    Raises:
        ValueError: fraction outside [0, 1] or a seed out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    if fraction == 1:
        return torch.arange(0), torch.arange(len(labels))
    values, inverse, counts = _classes(labels)
    quota = largest_remainder(counts, int(len(values) * fraction + 0.5))
    if fraction > 0:
        quota = np.minimum(np.maximum(quota, 1), counts - 1)
    chosen = _draw(values, quota, inverse, counts, seed, _SPLIT)
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def source_of(names: Sequence[str], part: str, *, where: str = "") -> str:
    """The stored split that train, val or test comes from.

    A single one is the source of all three. A missing test is a stored `val`, which is then the held-out
    split (ImageNet's custom). A missing validation comes from train.

    Args:
        names: of the stored splits: one of any name, or some of train, val and test.
        part: train, val or test.
        where: for the message.

    Raises:
        DataError: there are val and test, and no train, which is asked for.
    """
    if len(names) == 1:
        return names[0]
    if part == "test" and "test" not in names:
        return "val" if "val" in names else "train"
    if part == "val" and "val" in names and "test" in names:
        return "val"
    if part != "test" and "train" not in names:
        hint = "add some, or say which split they are: data.splits.train=NAME"
        raise DataError(f"no images to train on: only {' and '.join(names)}", where=where, hint=hint)
    return part if part != "val" else "train"


def carve_part(
    names: Sequence[str],
    part: str,
    labels: Callable[[str], Tensor],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[Tensor, list[str]]:
    """Positions int64 of train, val or test in the stored split `source_of(names, part)`, and notes.

    A test is never used to validate or to train: where it is carved from the only split there is, the
    validation is carved from the rest.

    Args:
        names: as in `source_of`. part: train, val or test.
        labels: name of a stored split -> its labels int64 [N].
        val_fraction, test_fraction: shares of a carved validation and a carved test, in [0, 1].
        seed: of both.
    """
    source, seeded = source_of(names, part), f"stratified, split_seed {seed}"
    stored = labels(source)
    rest, notes = torch.arange(len(stored)), list[str]()
    if len(names) == 1:
        rest, test = split_by_seed(stored, test_fraction, seed)
        if part == "test":
            return test, [_said(len(test), len(stored), seeded)]
        if part == "train" and source != "train":
            notes.append(f"only the {source} split is there, so train comes from it too")
    elif part == "test":
        lone = ["test: the stored val split, because there is no test split"] if source == "val" else []
        return rest, lone
    elif part == source and {"val", "test"} <= set(names):
        return rest, []
    keep, carved = split_by_seed(stored[rest], val_fraction, seed)
    if part == "train":
        return rest[keep], notes
    if not val_fraction:
        return rest[carved], []
    return rest[carved], [f"val: {len(carved)} of {len(rest)} training images, {seeded}"]


def _said(test: int, stored: int, seeded: str) -> str:
    """The note on a test that is carved from the only split there is."""
    if test == stored:
        return f"test: all {stored} images"
    return f"test: {test} of {stored} images, {seeded}"
