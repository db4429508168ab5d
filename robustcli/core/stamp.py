"""A square patch laid on images: where it lies, how far it is turned, how large it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robustcli.core.random import RowRandom
from robustcli.errors import DataError


class Pose(NamedTuple):
    """Where the patch of each row lies.

    Args:
        right, down: [R], the centre of the square, in pixels from the left and the upper edge of the image.
        side: [R], pixels.
        angle: [R], radians, clockwise.
    """

    right: Tensor
    down: Tensor
    side: Tensor
    angle: Tensor

    def rows(self, stay: Tensor) -> Pose:
        """The poses of some rows, int64 [n] or bool [R]."""
        return Pose(*(part[stay] for part in self))


def side_of(area: float, height: int, width: int) -> float:
    """The side, in pixels, of a square of this share of the image's area."""
    return math.sqrt(area * height * width)


def draw_pose(rng: RowRandom, x: Tensor, area: float, rotation: float, smallest: float) -> Pose:
    """A pose for each row: turn, size and place are uniform, and the whole square lies in the image.

    A square that is too large for that, as it is turned, lies in the middle. Where it would cover more pixels
    than floor(area * H * W), which happens on the pixels' grid, its side shrinks until it does not.

    Args:
        rng: one stream per row, of which one draw is taken.
        x: images [R, C, H, W]; their shape is read.
        area: the largest share of the image's pixels, in (0, 1].
        rotation: the largest turn to either side, degrees in [0, 180].
        smallest: the smallest side in units of the largest one, in (0, 1].

    Raises DataError for an area of less than a pixel.
    """
    height, width = x.shape[2:]
    pixels = math.floor(area * height * width + 1e-6)  # 1e-6: three of 100 pixels are 0.03
    if not pixels:
        what = f"a share of {area:g} of images of {height} x {width} is less than a pixel"
        least = math.ceil(1e5 / (height * width)) / 1e5
        raise DataError(what, where="area", hint=f"area: {least:g} or more")
    turn, size, right, down = rng.uniform((4,)).unbind(1)
    angle = (2 * turn - 1) * math.radians(rotation)
    side = side_of(area, height, width) * (smallest + (1 - smallest) * size)
    reach = side / 2 * (angle.cos().abs() + angle.sin().abs())
    pose = Pose(_within(right, reach, width), _within(down, reach, height), side, angle)
    return pose._replace(side=_covering(x, pose, pixels))


def _covering(x: Tensor, pose: Pose, pixels: int) -> Tensor:
    """The sides [R], shrunk where the square would cover the centres of more than so many pixels."""
    _, grid = places(x, pose._replace(side=torch.full_like(pose.side, 2)))
    distances = grid.abs().amax(3).flatten(1)
    if pixels >= distances.shape[1]:
        return pose.side
    first_outside = distances.kthvalue(pixels + 1, 1).values
    return torch.minimum(pose.side, 2 * (1 - 1e-5) * first_outside)


def _within(share: Tensor, reach: Tensor, length: int) -> Tensor:
    """`share` of the way from `reach` to `length - reach`; the middle where there is no way."""
    room = (length - 2 * reach).clamp_min(0)
    return length / 2 + (share - 0.5) * room


def places(x: Tensor, pose: Pose) -> tuple[Tensor, Tensor]:
    """(bool [R, 1, H, W], grid [R, H, W, 2]): the pixels whose centre the square covers, and where in it.

    The grid is in [-1, 1] inside the square, as `torch.nn.functional.grid_sample` reads it.
    """
    height, width = x.shape[2:]
    right = torch.arange(width, device=x.device) + 0.5 - pose.right[:, None]
    down = torch.arange(height, device=x.device) + 0.5 - pose.down[:, None]
    right, down = right[:, None, :], down[:, :, None]
    cos, sin = pose.angle.cos()[:, None, None], pose.angle.sin()[:, None, None]
    half = pose.side[:, None, None] / 2
    grid = torch.stack(((right * cos + down * sin) / half, (down * cos - right * sin) / half), 3)
    return (grid.abs() <= 1).all(3)[:, None], grid


def stamp(x: Tensor, patch: Tensor, pose: Pose) -> Tensor:
    """x with the patch on it: [R, C, H, W]. A pixel whose centre the square does not cover stays as it is.

    Args:
        x: images [R, C, H, W].
        patch: [C, S, S] for all rows, or [R, C, S, S]; the answer is differentiable in it. It is read
            bilinearly between its pixels.
        pose: of each row.
    """
    covered, grid = places(x, pose)
    each = patch.expand(len(x), *patch.shape[-3:])
    laid = functional.grid_sample(each, grid.to(x.dtype), padding_mode="border", align_corners=False)
    return torch.where(covered, laid, x)
