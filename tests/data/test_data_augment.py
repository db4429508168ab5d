from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robustcli.config.sections import Augment
from robustcli.core.random import RowRandom
from robustcli.core.warp import warp
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


@given(
    st.integers(0, 4),
    st.booleans(),
    st.integers(1, 3),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_slow_reference(
    crop: int, flip: bool, channels: int, side: tuple[int, int], epoch: int
) -> None:
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
    x, ids = (
        torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(32, 3, 8, 8),
        torch.arange(32),
    )
    first = augment(x, rng(ids), spec)
    assert not torch.equal(first, augment(x, rng(ids, epoch=1), spec))
    assert not torch.equal(first, augment(x, rng(ids, seed=6), spec))
    assert len({tuple(row.flatten().tolist()) for row in first}) > 16


def test_every_window_and_both_mirrors_are_drawn_equally() -> None:
    """One bright pixel in 3x3, crop 1, flip: its place tells (dy, dx, mirror).

    18 outcomes of 9,000; chi-square(17) 99.9 % is 40.8.
    """
    x = torch.zeros(9000, 1, 5, 5)
    x[:, :, 2, 1] = 1
    y = augment(x, rng(torch.arange(9000)), Augment(crop=1, flip=True))
    counts = torch.bincount(y.flatten(1).argmax(1), minlength=25)
    places = counts[counts > 0]
    assert int(places.sum()) == 9000
    # The pixel is at column 1 or mirrored at 3, moved by -1..1: columns 0..4. Two ways lead to column 2.
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


POSED = Augment(crop=0, flip=False, rotate=20, scale=0.2, translate=1.5)


def test_a_pose_leaves_the_windows_as_they_are() -> None:
    """And is what `warp` makes of them, with draws of its own for each image and epoch."""
    x, ids = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    window = Augment(crop=2, flip=True)
    angle, grow, right, down = rng(ids).restart(1).uniform((4,)).mul(2).sub(1).unbind(1)
    pose = (angle * math.radians(20), right * 1.5 / 8, down * 1.5 / 8, torch.exp(grow * math.log(1.2)))
    expected = warp(augment(x, rng(ids), window), *pose).clamp(0, 1)
    found = augment(x, rng(ids), POSED.model_copy(update={"crop": 2, "flip": True}))
    assert torch.allclose(found, expected, atol=1e-6) and not torch.equal(
        found, augment(x, rng(ids, epoch=1), POSED)
    )


def test_a_pose_does_not_depend_on_the_batch_and_stays_in_the_box() -> None:
    x, ids = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round(), torch.arange(16)
    whole = augment(x, rng(ids), POSED)
    assert torch.equal(augment(x[4:6], rng(ids[4:6]), POSED), whole[4:6])
    assert whole.min() >= 0 and whole.max() <= 1 and not torch.equal(whole, x)


@pytest.mark.parametrize(("name", "turned", "moved"), [("rotate", True, False), ("translate", False, True)])
def test_each_pose_alone(name: str, turned: bool, moved: bool) -> None:
    """The centre of mass of a dot beside the centre: a turn keeps its distance from it, a shift does not."""
    x, ids = torch.zeros(400, 1, 17, 17), torch.arange(400)
    x[:, :, 8, 12] = 1
    y = augment(x, rng(ids), Augment(crop=0, flip=False, **{name: 2.0 if name == "translate" else 30.0}))[
        :, 0
    ]
    places = torch.arange(17.0) - 8
    down, right = ((y.sum(axis) * places).sum(1) / y.sum((1, 2)) for axis in (2, 1))
    far = torch.hypot(down, right)
    assert (torch.allclose(far, torch.full_like(far, 4), atol=0.1)) is turned
    assert bool((right > 4.5).any()) is moved and down.min() < -1 and down.max() > 1


@pytest.mark.parametrize("wrong", [{"rotate": 181}, {"scale": -0.1}, {"scale": 2}, {"translate": -1}])
def test_impossible_poses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Augment(**wrong)
