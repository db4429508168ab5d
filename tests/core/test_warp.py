"""Turned, grown and shifted images."""

import pytest
import torch

from robustcli.core.warp import warp


def posed(x, angle=0.0, right=0.0, down=0.0, grow=None):
    angle, right, down = (torch.full((len(x),), value) for value in (angle, right, down))
    return warp(x, angle, right, down, None if grow is None else torch.full((len(x),), grow))


def image(height, width, *lit):
    x = torch.zeros(1, 1, height, width)
    for row, column in lit:
        x[0, 0, row, column] = 1.0
    return x


@pytest.mark.parametrize("grow", [None, 1.0])
def test_the_pose_of_zeros_is_the_identity(grow):
    x = torch.rand(3, 3, 5, 7)
    assert torch.allclose(posed(x, grow=grow), x, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 8), (8, 4)])
def test_a_shift_moves_content_right_and_down_by_its_share_of_the_side(height, width):
    moved = posed(image(height, width, (1, 1)), right=1 / width, down=2 / height)
    assert torch.allclose(moved, image(height, width, (3, 2)), atol=1e-4)


def test_what_slides_in_is_black():
    moved = posed(torch.ones(1, 1, 4, 4), right=0.25)
    assert torch.allclose(moved[0, 0], torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(4, 4), atol=1e-5)


def test_a_quarter_turn_is_a_quarter_turn_clockwise():
    x = torch.rand(2, 3, 6, 6)
    assert torch.allclose(posed(x, angle=torch.pi / 2), x.rot90(-1, (2, 3)), atol=1e-4)


def test_turns_do_not_shear_an_image_that_is_not_square():
    """A pixel two to the right of the centre of a 5 x 9 image comes to lie two below it."""
    assert torch.allclose(posed(image(5, 9, (2, 6)), angle=torch.pi / 2), image(5, 9, (4, 4)), atol=1e-4)


def test_the_turn_is_about_the_centre_and_the_shift_comes_after_it():
    assert torch.allclose(
        posed(image(5, 5, (2, 3)), angle=torch.pi / 2, right=1 / 5), image(5, 5, (3, 3)), atol=1e-4
    )


def test_growth_is_away_from_the_centre_and_the_shift_is_not_grown():
    """Twice as large, a pixel one to the right of the centre lies two to the right of it; then one down."""
    grown = posed(image(9, 9, (4, 5)), grow=2.0, down=1 / 9)
    assert grown[0, 0, 5, 6] == pytest.approx(1.0, abs=1e-4) and grown[0, 0, 5, 4] == pytest.approx(
        0.0, abs=1e-4
    )
    assert grown.sum() == pytest.approx(4.0, abs=1e-3), "the area is four times as large"
    shrunk = posed(image(9, 9, (4, 6)), grow=0.5)
    assert shrunk[0, 0, 4, 5] == pytest.approx(1.0, abs=1e-4)


def test_rows_have_poses_of_their_own():
    x = torch.rand(3, 1, 6, 6)
    angles = torch.tensor([0.0, torch.pi / 2, torch.pi])
    turned = warp(x, angles, torch.zeros(3), torch.zeros(3))
    for row, turns in enumerate((0, -1, -2)):
        assert torch.allclose(turned[row], x[row].rot90(turns, (1, 2)), atol=1e-4)
