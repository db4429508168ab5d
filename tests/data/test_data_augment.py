from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.config.schema import Augment
from robustcli.core.random import RowRandom
from robustcli.data.augment import augment


def rng(ids: torch.Tensor, epoch: int = 0, seed: int = 5) -> RowRandom:
    return RowRandom(seed, "augment", ids, epoch=epoch)


def reference(x: torch.Tensor, sample: int, spec: Augment, epoch: int) -> torch.Tensor:
    """One image, the slow and obvious way: pad, mirror, cut."""
    draws = rng(torch.tensor([sample]), epoch)
    channels, height, width = x.shape
    dy, dx = draws.integers(0, 2 * spec.crop + 1, (2,))[0].tolist() if spec.crop else (0, 0)
    mirror = spec.flip and bool(draws.integers(0, 2, (1,))[0, 0])
    padded = torch.zeros(channels, height + 2 * spec.crop, width + 2 * spec.crop)
    padded[:, spec.crop : spec.crop + height, spec.crop : spec.crop + width] = x
    window = padded[:, dy : dy + height, dx : dx + width]
    return window.flip(-1) if mirror else window


@given(st.integers(0, 4), st.booleans(), st.integers(1, 3), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_equals_the_slow_reference(crop: int, flip: bool, channels: int, side: tuple[int, int], epoch: int) -> None:
    spec = Augment(crop=crop, flip=flip)
    x = torch.rand(5, channels, *side, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([3, 1, 40, 2**40, 0])
    expected = torch.stack([reference(image, int(i), spec, epoch) for image, i in zip(x, ids, strict=True)])
    assert torch.equal(augment(x, rng(ids, epoch), spec), expected)


def test_row_does_not_depend_on_its_batch() -> None:
    spec = Augment(crop=2, flip=True)
    x, ids = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16)
    whole = augment(x, rng(ids), spec)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(x[order], rng(ids[order]), spec), whole[order])
    assert torch.equal(augment(x[4:5], rng(ids[4:5]), spec), whole[4:5])


def test_epochs_seeds_and_ids_differ() -> None:
    spec = Augment(crop=4, flip=True)
    x, ids = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(32, 3, 8, 8), torch.arange(32)
    first = augment(x, rng(ids), spec)
    assert not torch.equal(first, augment(x, rng(ids, epoch=1), spec))
    assert not torch.equal(first, augment(x, rng(ids, seed=6), spec))
    assert len({tuple(row.flatten().tolist()) for row in first}) > 16


def test_every_window_and_both_mirrors_are_drawn_equally() -> None:
    """One bright pixel in 3x3, crop 1, flip: its place tells (dy, dx, mirror); 18 outcomes of 9,000, chi-square(17) 99.9 % is 40.8."""
    x = torch.zeros(9000, 1, 5, 5)
    x[:, :, 2, 1] = 1
    y = augment(x, rng(torch.arange(9000)), Augment(crop=1, flip=True))
    counts = torch.bincount(y.flatten(1).argmax(1), minlength=25)
    places = counts[counts > 0]
    assert int(places.sum()) == 9000
    # The pixel is at column 1 or mirrored at 3, moved by -1..1: columns 0..4, where column 2 is reached both ways.
    expected = torch.tensor([1, 1, 2, 1, 1]).repeat(3) * 500.0
    assert float(((places - expected) ** 2 / expected).sum()) < 40.8


def test_nothing_to_do_returns_x() -> None:
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert augment(x, rng(torch.arange(2)), Augment(crop=0, flip=False)) is x


@pytest.mark.parametrize("flip", [True, False])
def test_input_is_not_changed(flip: bool) -> None:
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    y = augment(x, rng(torch.arange(4)), Augment(crop=2, flip=flip))
    assert torch.equal(x, before)
    assert float(y.min()) >= 0 and float(y.max()) <= 1 and y.shape == x.shape
