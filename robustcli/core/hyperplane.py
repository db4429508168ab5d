"""The shortest way from a point to a hyperplane inside the pixel box, under linf, l2 and l1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcli.core.geometry import ORDER, Ball, Norm

_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": math.inf}
_TINY = 1e-37  # only keeps 0 out of denominators: slopes of pixels with small weights count


def length(d: Tensor, norm: Norm) -> Tensor:
    """||d||_p per row: [B], from d [B, C, H, W], in its type. `Ball.distance` measures what is reported."""
    size: Tensor = torch.linalg.vector_norm(d.flatten(1), ord=ORDER[norm], dim=1)
    return size


def dual_length(w: Tensor, norm: Norm) -> Tensor:
    """||w||_q per row with 1/p + 1/q = 1: [B], from w [B, C, H, W].

    A plane of value v and normal w is |v| / ||w||_q away under p.
    """
    size: Tensor = torch.linalg.vector_norm(w.flatten(1), ord=_DUAL[norm], dim=1)
    return size


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per row: [B], from two tensors [B, C, H, W]."""
    return (a * b).flatten(1).sum(1)


def to_plane(x: Tensor, w: Tensor, value: Tensor, ball: Ball) -> Tensor:
    """argmin_d ||d||_p  subject to  value + <w, d> = 0,  low <= x + d <= high;  exact, [B, C, H, W].

    Each pixel helps in one direction only, up to the box: by `room`. The sizes 0 <= m_i <= room_i of the
    moves must bring sum_i |w_i| m_i to |value|. The shortest solution is
        linf: m = min(t, room);
        l2:   m = min(t |w|, room);
        l1:   the pixels of the largest |w_i| take all their room, one after another.
    A plane out of reach inside the box gives the box corner nearest to it. w = 0 or value = 0 gives d = 0.

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
    if ball.norm == "l1":
        size = _steepest_first(rate, room, need)
    elif ball.norm == "l2":
        size = _together(rate, room, need, pace=rate)
    else:
        size = _together(rate, room, need, pace=torch.ones_like(rate))
    return (size * toward.sign()).reshape(x.shape)


def _together(rate: Tensor, room: Tensor, need: Tensor, pace: Tensor) -> Tensor:
    """m_i = min(t pace_i, room_i) with sum_i rate_i m_i = need, or m = room; all [B, n], need [B, 1].

    t starts as if no pixel were full. Each round fixes the pixels that are full at t and solves t for the
    rest. This is Newton's method on a concave function from below: t only grows, and a round without a newly
    full pixel is exact. A handful of rounds costs less than a sort.
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
    """sum_i rate_i m_i = need, or m = room; all [B, n], need [B, 1].

    m is all room of the pixels of the largest rates, a part of it for the next pixel, and 0 for the rest.
    """
    rate, order = rate.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    mass = rate * room
    left = need - (mass.cumsum(1) - mass)  # by the pixels before
    share = (left / torch.where(mass > 0, mass, torch.ones_like(mass))).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, share * room)
