"""Shortest way from points to a hyperplane inside the pixel box, under linf, l2 and l1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcli.core.geometry import Ball, Norm

_TINY = 1e-37  # only keeps 0 out of denominators: slopes of pixels with small weights count
_ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def length(d: Tensor, norm: Norm) -> Tensor:
    """||d||_p per row [B] of d [B, ...], in the type of d; `Ball.distance` measures what is reported."""
    size: Tensor = torch.linalg.vector_norm(d.flatten(1), ord=_ORDER[norm], dim=1)
    return size


def dual_length(w: Tensor, norm: Norm) -> Tensor:
    """||w||_q per row [B] of w [B, ...], 1/p + 1/q = 1: a plane of value v and normal w is |v| / ||w||_q away."""
    size: Tensor = torch.linalg.vector_norm(w.flatten(1), ord=_DUAL[norm], dim=1)
    return size


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per row [B] of two tensors [B, ...]."""
    return (a * b).flatten(1).sum(1)


def to_plane(x: Tensor, w: Tensor, value: Tensor, ball: Ball) -> Tensor:
    """argmin_d ||d||_p  subject to  value + <w, d> = 0,  low <= x + d <= high;  exact, [B, ...] like x.

    Each pixel may only help by moving in one direction, as far as the box: `room`. With sizes 0 <= m_i <= room_i and
    rates |w_i|, sum_i |w_i| m_i = |value| has the shortest solution  linf: m = min(t, room);  l2: m = min(t |w|, room);
    l1: the largest |w_i| filled first. A plane out of reach inside the box gives the box corner nearest to it; w = 0
    or value = 0 gives d = 0.

    Args:
        x: points in the box [B, ...].
        w: normals [B, ...], finite; any scale.
        value: <w, x> + b [B], finite.
        ball: its norm and box; the radius is not used.

    Source: Croce & Hein, ICML 2020, arXiv:1907.02044, section 2.2.
    """
    flat, toward = x.flatten(1), -w.flatten(1) * value.sign()[:, None]
    rate = toward.abs()
    top = rate.amax(1, keepdim=True)
    top = torch.where(top > 0, top, torch.ones_like(top))
    rate, need = rate / top, value.abs()[:, None] / top  # squares of tiny float32 gradients underflow
    room = torch.where(toward > 0, ball.high - flat, flat - ball.low).clamp_min_(0)
    size = (
        _steepest_first(rate, room, need)
        if ball.norm == "l1"
        else _together(rate, room, need, torch.ones_like(rate) if ball.norm == "linf" else rate)
    )
    return (size * toward.sign()).reshape(x.shape)


def _together(rate: Tensor, room: Tensor, need: Tensor, pace: Tensor) -> Tensor:
    """m_i = min(t pace_i, room_i) with sum_i rate_i m_i = need, or m = room; all [B, n], need [B, 1].

    t starts as if no pixel were full; pixels full at t are fixed and t is solved for the rest: Newton's method on a concave
    function from below, so t only grows, and a round without a newly full pixel is exact (a handful of rounds, no sort).
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
    """m = room for the largest rates, one pixel partly filled, 0 for the rest, with sum_i rate_i m_i = need, or m = room."""
    rate, order = rate.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    mass = rate * room
    left = need - (mass.cumsum(1) - mass)  # what the pixels before have not provided
    share = (left / torch.where(mass > 0, mass, torch.ones_like(mass))).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, share * room)
