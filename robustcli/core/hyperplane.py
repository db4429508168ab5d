"""The shortest way from a point to a hyperplane inside the pixel box, under linf, l2 and l1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcli.core.geometry import ORDER, Ball, Norm

_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": math.inf}
_TINY = 1e-37  # only keeps 0 out of denominators
_NOISE = 2.0**-24  # float32's unit roundoff: a share below it changes no sum


def length(d: Tensor, norm: Norm) -> Tensor:
    """||d||_p per row: [B], in the type of d [B, C, H, W]. Reported distances come from `Ball.distance`."""
    size: Tensor = torch.linalg.vector_norm(d.flatten(1), ord=ORDER[norm], dim=1)
    return size


def dual_length(w: Tensor, norm: Norm) -> Tensor:
    """||w||_q per row with 1/p + 1/q = 1: [B], from w [B, C, H, W].

    Under the norm p, the plane v + <w, d> = 0 lies |v| / ||w||_q away from d = 0.
    """
    size: Tensor = torch.linalg.vector_norm(w.flatten(1), ord=_DUAL[norm], dim=1)
    return size


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per row: [B], from two tensors [B, C, H, W]."""
    return (a * b).flatten(1).sum(1)


def to_plane(x: Tensor, w: Tensor, value: Tensor, ball: Ball) -> Tensor:
    """argmin_d ||d||_p  subject to  value + <w, d> = 0,  low <= x + d <= high;  exact, [B, C, H, W].

    A move of pixel i towards the plane has one direction, a size m_i >= 0, and at most the size room_i, where
    the box ends. The plane is reached when sum_i |w_i| m_i = |value|. The shortest moves are
        linf: m_i = min(t, room_i), with the t that reaches the plane;
        l2:   m_i = min(t |w_i|, room_i), with the t that reaches the plane;
        l1:   m_i = room_i for the pixels of the largest |w_i|, one after another, until it is reached.
    A plane that does not meet the box gives the corner of the box nearest to it. w = 0 or value = 0 gives
    d = 0. Under l2 and l1, pixels with |w_i| room_i <= 2^-24 max_j |w_j| room_j stay where they are: they
    bring the plane no nearer, and towards a corner they would be moved as far as pixels that do.

    Args:
        x: points in the box [B, C, H, W].
        w: normals [B, C, H, W], finite, of any scale.
        value: <w, x> + b [B], finite; the plane is where it is 0.
        ball: its norm and box; the radius is not used.

    Source: Croce & Hein, ICML 2020, arXiv:1907.02044, section 2.2.
    """
    flat, toward = x.flatten(1), -w.flatten(1) * value.sign()[:, None]
    rate = toward.abs()
    top = rate.amax(1, keepdim=True)
    top = torch.where(top > 0, top, torch.ones_like(top))
    rate, need = rate / top, value.abs()[:, None] / top  # else squares of tiny float32 gradients underflow
    room = torch.where(toward > 0, ball.high - flat, flat - ball.low).clamp_min_(0)
    if ball.norm != "linf":
        counts = rate * room > _NOISE * (rate * room).amax(1, keepdim=True)
        rate, room = rate * counts, room * counts
    if ball.norm == "l1":
        size = _steepest_first(rate, room, need)
    elif ball.norm == "l2":
        size = _together(rate, room, need, pace=rate)
    else:
        size = _together(rate, room, need, pace=torch.ones_like(rate))
    return (size * toward.sign()).reshape(x.shape)


def _together(rate: Tensor, room: Tensor, need: Tensor, pace: Tensor) -> Tensor:
    """m_i = min(t pace_i, room_i) with sum_i rate_i m_i = need; m = room where no t is enough.

    A pixel is full when m_i = room_i. Each round solves t for the pixels that are not full, then finds those
    that are full at this t. t only grows: this is Newton's method on a concave function, from below. A round
    that fills no further pixel is exact. A handful of rounds costs less than a sort.

    rate, room, pace, m: [B, n]; need: [B, 1]; all >= 0.
    """
    mass, slope = rate * room, rate * pace
    free = room > 0
    while True:
        full = mass.masked_fill(free, 0.0).sum(1, keepdim=True)
        t = (need - full) / slope.masked_fill(~free, 0.0).sum(1, keepdim=True).clamp_min(_TINY)
        size = t * pace
        still = free & (size < room)
        if torch.equal(still, free):
            return torch.where(free, size.clamp_min(0), room)  # a rounded t may fall below 0
        free = still


def _steepest_first(rate: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The m of least sum with 0 <= m_i <= room_i and sum_i rate_i m_i = need; m = room where none exists.

    m_i is room_i for the pixels of the largest rates, a part of it for the next pixel, 0 for the rest.
    rate, room, m: [B, n]; need: [B, 1]; all >= 0.
    """
    rate, order = rate.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    mass = rate * room
    left = need - (mass.cumsum(1) - mass)  # by the pixels before
    share = (left / torch.where(mass > 0, mass, torch.ones_like(mass))).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, share * room)
