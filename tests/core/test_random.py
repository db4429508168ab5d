"""Keyed draws: functions of (seed, stream, epoch, restart, id, draw), whoever shares the batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.core.random import RowRandom

IDS = torch.tensor([3, 11, 4, 250, 0])


@pytest.mark.parametrize(
    "draw", [lambda r: r.uniform((3, 4)), lambda r: r.integers(-2, 9, (5,)), lambda r: r.normal((7,))]
)
def test_rows_do_not_depend_on_the_batch(draw):
    whole = RowRandom(5, "start", IDS)
    first, second = draw(whole), draw(whole)
    for place, sample in enumerate(IDS.tolist()):
        alone = RowRandom(5, "start", torch.tensor([sample]))
        assert torch.equal(draw(alone)[0], first[place])
        assert torch.equal(draw(alone)[0], second[place])
    assert not torch.equal(first, second)


def test_rows_that_leave_keep_the_draws_of_those_that_stay():
    whole, part = RowRandom(5, "start", IDS), RowRandom(5, "start", IDS)
    whole.uniform(), part.uniform()
    part = part.rows(torch.tensor([True, False, True, False, True]))
    assert torch.equal(whole.uniform((2,))[[0, 2, 4]], part.uniform((2,)))


@pytest.mark.parametrize("change", [{"seed": 6}, {"stream": "augment"}, {"epoch": 1}, {"restart": 1}])
def test_each_part_of_the_key_matters(change):
    key = {"seed": 5, "stream": "start", "epoch": 0, "restart": 0} | change
    other = RowRandom(key["seed"], key["stream"], IDS, epoch=key["epoch"], restart=key["restart"])
    assert not torch.equal(RowRandom(5, "start", IDS).uniform((8,)), other.uniform((8,)))


def test_restart_is_a_fresh_stream_of_the_same_rows():
    stream = RowRandom(5, "start", IDS, epoch=2)
    stream.uniform((9,))
    assert torch.equal(
        stream.restart(3).uniform((4,)), RowRandom(5, "start", IDS, epoch=2, restart=3).uniform((4,))
    )


def test_moments_and_ranges():
    stream = RowRandom(0, "start", torch.arange(200))
    u = stream.uniform((500,)).double()
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())
    assert abs(float(u.var()) - 1 / 12) < 0.002
    z = stream.normal((500,)).double()
    assert torch.isfinite(z).all() and abs(float(z.mean())) < 0.02 and abs(float(z.var()) - 1) < 0.03
    assert abs(float((z**4).mean()) - 3) < 0.2
    counts = torch.bincount(stream.integers(0, 7, (500,)).flatten(), minlength=7).double()
    expected = counts.sum() / 7
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 6 degrees, p = 1e-4


def test_rows_and_elements_are_uncorrelated():
    u = RowRandom(1, "start", torch.arange(64)).uniform((1024,)).double() - 0.5
    correlation = torch.corrcoef(u) - torch.eye(64)
    assert float(correlation.abs().max()) < 6 / math.sqrt(1024)
    assert abs(float((u[:, 1:] * u[:, :-1]).mean()) * 12) < 6 / math.sqrt(u.numel())


@settings(max_examples=40, deadline=None)
@given(st.integers(-1000, 1000), st.integers(1, 2**22), st.integers(0, 2**62))
def test_integers_stay_in_range(low, width, seed):
    draws = RowRandom(seed, "target", IDS).integers(low, low + width, (20,))
    assert int(draws.min()) >= low and int(draws.max()) < low + width


def test_empty_range_is_refused():
    with pytest.raises(ValueError, match="low"):
        RowRandom(0, "x", IDS).integers(3, 3)


def test_known_bits():
    """The draws are part of a recorded result: they may never change between versions."""
    u = RowRandom(0, "start", torch.tensor([0, 1])).uniform((2,))
    assert torch.equal((u * 2**24).long(), GOLDEN)


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    RowRandom(0, "start", IDS).normal((4,))
    assert torch.equal(before, torch.get_rng_state())


GOLDEN = torch.tensor([[12766633, 6845217], [11554533, 15770511]])
