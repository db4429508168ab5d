from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.data.sampling import (
    carve_part,
    largest_remainder,
    source_of,
    split_by_seed,
    stratified,
    train_order,
)

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(torch.tensor)
SEEDS = st.integers(0, 2**63 - 1)


@given(LABELS, st.integers(1, 100), SEEDS)
@settings(max_examples=60, deadline=None)
def test_stratified_sums_and_shares(labels: torch.Tensor, n: int, seed: int) -> None:
    chosen = stratified(labels, n, seed)
    total = len(labels)
    assert len(chosen) == min(n, total)
    assert torch.equal(chosen, chosen.unique())  # sorted, no repetition
    for k in labels.unique():
        share = min(n, total) * int((labels == k).sum()) / total
        assert abs(int((labels[chosen] == k).sum()) - share) < 1


@given(LABELS, st.floats(0, 0.99), SEEDS)
@settings(max_examples=60, deadline=None)
def test_split_is_a_partition_and_keeps_classes(labels: torch.Tensor, fraction: float, seed: int) -> None:
    rest, part = split_by_seed(labels, fraction, seed)
    assert torch.equal(torch.cat((rest, part)).sort().values, torch.arange(len(labels)))
    for k in labels.unique():
        assert (labels[rest] == k).any()
        if fraction > 0 and int((labels == k).sum()) >= 2:
            assert (labels[part] == k).any()
    if fraction == 0:
        assert len(part) == 0


def test_split_has_the_size_asked_for() -> None:
    rest, part = split_by_seed(torch.arange(1797) % 10, 0.25, 0)
    assert (len(rest), len(part)) == (1348, 449)


@given(st.integers(0, 300), SEEDS, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert torch.equal(train_order(n, seed, epoch).sort().values, torch.arange(n))


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = train_order(500, 3, 4)
    torch.rand(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, train_order(500, 3, 4))
    others = [train_order(500, 3, 5), train_order(500, 4, 4), torch.arange(500)]
    assert not any(torch.equal(first, other) for other in others)


def test_order_is_uniform_over_places() -> None:
    """Each of 8 samples stands first in 1/8 of 4,000 epochs; chi-square(7) 99.9 % is 24.3."""
    first = torch.tensor([int(train_order(8, 0, epoch)[0]) for epoch in range(4000)])
    expected = 4000 / 8
    assert float(((torch.bincount(first, minlength=8) - expected) ** 2 / expected).sum()) < 24.3


def test_golden_values_never_change() -> None:
    """A change here changes every published split: it needs a major version."""
    assert train_order(10, 0, 0).tolist() == [6, 7, 2, 9, 1, 3, 5, 0, 4, 8]
    assert stratified(torch.arange(40) % 4, 8, 0).tolist() == [5, 12, 16, 17, 22, 31, 34, 39]
    assert split_by_seed(torch.arange(20) % 2, 0.2, 7)[1].tolist() == [2, 5, 15, 18]


def test_sample_split_and_order_use_different_streams() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    sample, part = stratified(labels, 30, 0), split_by_seed(labels, 0.3, 0)[1]
    assert not torch.equal(sample, part)


def test_largest_remainder_is_hamiltons() -> None:
    assert largest_remainder(np.array([47, 16, 158, 81, 138, 3]), 100).tolist() == [
        10,
        4,
        36,
        18,
        31,
        1,
    ]  # floors sum to 97; remainders .68, .67, .61 get one
    assert largest_remainder(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]  # a tie goes to the lower class
    assert largest_remainder(np.array([0, 0]), 0).tolist() == [0, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: stratified(torch.zeros(3, dtype=torch.int64), 0, 0),
        lambda: split_by_seed(torch.zeros(3, dtype=torch.int64), 1.1, 0),
        lambda: split_by_seed(torch.zeros(3, dtype=torch.int64), -0.1, 0),
        lambda: train_order(3, -1, 0),
        lambda: train_order(3, 2**63, 0),
        lambda: largest_remainder(np.array([1, 2]), 4),
    ],
)
def test_wrong_arguments(call) -> None:
    with pytest.raises(ValueError):
        call()


def _carve(**counts: int):
    labels = {part: torch.arange(n) % 2 for part, n in counts.items()}
    fractions = {"val_fraction": 0.2, "test_fraction": 0.25}
    parts, notes = {}, []
    for part in ("train", "val", "test"):
        positions, more = carve_part(tuple(labels), part, labels.__getitem__, **fractions, seed=0)
        parts[part] = source_of(tuple(labels), part), positions
        notes += more
    return parts, notes


@pytest.mark.parametrize(
    ("stored", "sources", "sizes"),
    [
        ({"train": 40}, ("train", "train", "train"), (24, 6, 10)),
        ({"test": 40}, ("test", "test", "test"), (24, 6, 10)),
        ({"train": 40, "test": 9}, ("train", "train", "test"), (32, 8, 9)),
        ({"train": 40, "val": 9}, ("train", "train", "val"), (32, 8, 9)),
        ({"train": 40, "val": 7, "test": 9}, ("train", "val", "test"), (40, 7, 9)),
    ],
)
def test_carve(stored: dict[str, int], sources: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    parts, notes = _carve(**stored)
    order = ("train", "val", "test")
    assert tuple(parts[p][0] for p in order) == sources
    assert tuple(len(parts[p][1]) for p in order) == sizes
    seen = [(source, int(i)) for source, positions in parts.values() for i in positions]
    assert len(set(seen)) == len(seen), "one sample in two splits"
    assert bool(notes) == (len(stored) < 3)


def test_carve_says_what_is_unusual() -> None:
    assert any("the stored val split" in note for note in _carve(train=40, val=9)[1])
    assert "only the test split" in _carve(test=40)[1][0]
