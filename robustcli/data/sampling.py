"""Which samples, in which order: seeded, stratified, and independent of every global random state.

Random keys are raw Philox4x64 words (Salmon et al., SC 2011). numpy guarantees the words of a bit generator
for ever (NEP 19), unlike its `permutation` or `shuffle`, so a split made today is the same in ten years.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


def train_order(n: int, seed: int, epoch: int) -> Tensor:
    """int64 [n]: a permutation of 0 to n - 1, a function of (seed, epoch) and of nothing else."""
    keys = _keys(n, seed, _ORDER, epoch)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))


def split_by_seed(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, part): part holds round(fraction * N) samples, every class by its share.

    Args:
        labels: int64 [N].
        fraction: share of `part`, in [0, 1).
        seed: in [0, 2^63).

    Returns:
        two int64 vectors of sorted positions, disjoint, together 0 to N - 1. With a fraction above 0 every
        class of two or more samples is in both. A class whose share rounds to none gives one all the same, so
        `part` may be a little larger than asked. A class of one sample stays in `rest`.

    Raises:
        ValueError: fraction outside [0, 1) or a seed out of range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")
    values, inverse, counts = _classes(labels)
    quota = largest_remainder(counts, int(len(values) * fraction + 0.5))
    if fraction > 0:
        quota = np.minimum(np.maximum(quota, 1), counts - 1)
    chosen = _draw(values, quota, inverse, counts, seed, _SPLIT)
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def carve(
    labels: Mapping[str, Tensor], *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Where train, val and test come from: {part: (stored split, int64 positions in it)} and notes.

    `labels` maps the stored splits to their labels: one of any name, or train with val, test or both. A
    missing test is carved by seed from the only split there is, a missing validation from train. A test is
    never used to validate or to train. A stored `val` without a `test` is the held-out split (ImageNet's
    custom), so it is the test.
    """
    seeded = f"stratified, split_seed {seed}"
    everything = {name: torch.arange(len(values)) for name, values in labels.items()}
    if len(labels) == 3:
        return {name: (name, everything[name]) for name in ("train", "val", "test")}, []
    if len(labels) == 1:
        (source,) = labels
        rest, carved = split_by_seed(labels[source], test_fraction, seed)
        test = source, carved
        notes = [f"test: {len(carved)} of {len(labels[source])} images, {seeded}"]
        if source != "train":
            notes[0] += f"; only the {source} split is there, so train comes from it too"
    elif "test" in labels:
        source, rest, test, notes = "train", everything["train"], ("test", everything["test"]), []
    else:
        source, rest, test = "train", everything["train"], ("val", everything["val"])
        notes = ["test: the stored val split, because there is no test split"]
    keep, carved = split_by_seed(labels[source][rest], val_fraction, seed)
    notes.append(f"val: {len(carved)} of {len(rest)} training images, {seeded}")
    return {"train": (source, rest[keep]), "val": (source, rest[carved]), "test": test}, notes
