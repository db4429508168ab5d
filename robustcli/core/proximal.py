"""argmin_z  c ||z||_p + 1/2 sum_i h_i (z_i - r_i)^2  per row: the proximal operator in a diagonal metric.

All three are exact. l1: Parikh & Boyd, Proximal Algorithms, 2014, section 6.5. l2 and linf: the optimality
condition has one unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.core.geometry import Norm

_TINY = 1e-37  # only keeps 0 out of denominators
_ROUNDS = 30  # of Newton's method on a convex function of one unknown; it stops earlier


def shrink(r: Tensor, h: Tensor, c: Tensor, norm: Norm) -> Tensor:
    """The z above, [B, n], under linf, l2 or l1.

    Args:
        r: [B, n], any.
        h: [B, n], > 0.
        c: [B, 1], >= 0.
    """
    if norm == "l1":
        return r.sign() * (r.abs() - c / h).clamp_min(0)
    if norm == "l2":
        return _shorter(r, h, c)
    return _clipped(r, h, c)


def _shorter(r: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """l2: z_i = s w_i with w_i = h_i r_i / (s h_i + c), and s = ||z||_2 where ||w||_2 = 1; z = 0 where
    ||h r||_2 <= c.

    1 / ||w|| is nearly a straight line in s: Newton's method on it takes a few rounds. It begins at s = 0.
    """
    pull, s = h * r, torch.zeros_like(c)
    for _ in range(_ROUNDS):
        under = (s * h + c).clamp_min(_TINY)
        w = pull / under
        size = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        bend = (w.square() * h / under).sum(1, keepdim=True)
        step = (size - 1).clamp_min(0) * size.square() / bend.clamp_min(_TINY)
        s = s + step
        if not bool((step > 1e-6 * s).any()):
            break
    return torch.where(c > 0, s * pull / (s * h + c).clamp_min(_TINY), r)


def _clipped(r: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """linf: z_i = sign(r_i) min(|r_i|, t) with sum_i h_i max(|r_i| - t, 0) = c; z = 0 where no t >= 0 does.

    The sum falls piecewise linearly in t. Its knots |r_i| are sorted, and t lies behind the last of them at
    which it is below c.
    """
    size, order = r.abs().sort(1, descending=True)
    weight = h.gather(1, order)
    heavy, mass = weight.cumsum(1), (weight * size).cumsum(1)
    below = (mass - size * heavy <= c).sum(1, keepdim=True)  # >= 1: it is 0 at the first knot
    t = (mass.gather(1, below - 1) - c) / heavy.gather(1, below - 1).clamp_min(_TINY)
    return r.sign() * torch.minimum(r.abs(), t.clamp_min(0))
