"""Checkpoints and the halving rule of Auto-PGD, by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustcli.core.search import checkpoints, stalled


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, (22, 41, 57, 70, 80, 87, 93, 99)),
        (50, (11, 21, 30, 38, 45)),
        (10, (2, 3, 4, 5, 6, 7, 8, 9, 10)),
        (1, (1,)),
    ],
)
def test_checkpoints_by_hand(steps, expected):
    assert checkpoints(steps) == expected


@given(st.integers(1, 2000))
def test_gaps_shrink_to_their_floor_and_no_checkpoint_lies_behind_the_end(steps):
    marks = checkpoints(steps)
    gaps = [b - a for a, b in zip((0, *marks), marks, strict=False)]
    assert marks[-1] <= steps < marks[-1] + gaps[-1]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] >= max(int(0.06 * steps), 1)


def test_a_row_is_cut_for_oscillation_or_for_standing_still_but_not_twice_in_a_row_for_that():
    rises = torch.tensor([15.0, 16.0, 22.0, 22.0, 22.0])  # 0.75 * 20 = 15 is still oscillation
    was_cut = torch.tensor([True, True, True, False, False])
    then = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    best = torch.tensor([2.0, 2.0, 1.0, 1.0, 1.5])
    assert stalled(rises, 20, 0.75, was_cut, best, then).tolist() == [True, False, False, True, False]
