"""HopSkipJump: walk along the decision boundary, with normals that are estimated from labels alone."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.decisions import Decisions
from robustcli.core.geometry import Ball, column
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.registry import attacks

_CHUNK = 1 << 24  # numbers of the points that are drawn at once
_HALVINGS = 12  # of a step, until it is given up
_LEAST = 10  # points from which a normal is worth estimating
_FINEST = 2.0**-16  # of the distance: nearer to the boundary, rounding decides which side a point is on
_TINY = 1e-12


@attacks.register(
    "hopskipjump",
    kind="minimal",
    norms=("linf", "l2"),
    needs="decisions",
    precision="fp32",
    passes=lambda given, classes, norm: given["queries"],
    use="models of which only the label is seen; the distance falls as queries are spent",
    deterministic=False,
)
def hopskipjump(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    queries: Annotated[int, Ge(2)] = 5000,
    first: Annotated[int, Ge(1)] = 100,
    gamma: Annotated[float, Gt(0)] = 1.0,
) -> Tensor:
    """z_{t+1} = B(z_t + e_t v_t),  v_t = mean_b (phi_b - mean phi) u_b,  phi_b = sign of z_t + delta u_b.

    B moves a success towards x, by bisection, until just before it fails.
        l2: v_t is normalised, and u_b is uniform on the unit sphere.
        linf: v_t is the sign, and u_b is uniform in the cube, of length 1. B cuts z to a smaller cube.
    e_t begins at ||z_t - x|| / sqrt(t) and is halved until the point is a success. delta = ||z_t - x|| / d,
    more where B cannot be as precise in float32.
    The number of points b grows as first * sqrt(t). Each row starts from the nearest of a few random images.

    Args:
        oracle: says which points are successes; holds one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm and box; points may leave its radius.
        queries: model passes per row, >= 2, all counted: starts, bisections, normals and the last point.
        first: points of the first normal, >= 1.
        gamma: precision of B in units of d^-1.5 (l2) or d^-2 (linf) of the distance, > 0.

    Returns:
        x_adv [B, C, H, W], detached, in the box; rows never broken come back as the oracle keeps them.

    Raises:
        ValueError: queries < 2, first < 1, gamma <= 0.

    Source: Chen et al., IEEE S&P 2020, arXiv:1904.02144, algorithm 2.
    """
    if queries < 2 or first < 1 or not gamma > 0:
        given = f"{queries}, {first} and {gamma}"
        raise ValueError(f"queries must be >= 2, first >= 1 and gamma > 0, got {given}")
    search = Decisions(oracle, x, ball, queries)
    precision = _precision(x, ball, gamma)
    halvings = max(1, math.ceil(-math.log2(precision)))
    search.begin(halvings=min(8, halvings))
    rows = (search.left > 0).nonzero()[:, 0]
    points = search.best
    if len(rows):
        points = points.index_copy(0, rows, search.back(points[rows], rows, halvings))
    (points,) = search.leave(points)
    step = 1
    while len(search.left) and bool((search.left > _LEAST + halvings).any()):
        points = _move(search, points, step, int(first * math.sqrt(step)), precision, halvings)
        (points,) = search.leave(points)
        step += 1
    return oracle.result(search.best)


def _precision(x: Tensor, ball: Ball, gamma: float) -> float:
    """How much nearer than x B finds the boundary."""
    power = 2.0 if ball.norm == "linf" else 1.5
    finest: float = max(gamma * math.prod(x.shape[1:]) ** -power, _FINEST)
    return min(0.5, finest)


def _move(search: Decisions, points: Tensor, step: int, many: int, precision: float, halvings: int) -> Tensor:
    """Points [R, C, H, W] on the boundary after one step of all rows that have queries left."""
    rows = (search.left > _LEAST + halvings).nonzero()[:, 0]
    z = points[rows]
    far = search.length(z, rows)
    d = math.prod(z.shape[1:])
    delta = far * precision * (d if search.ball.norm == "linf" else math.sqrt(d))
    # Below half a step of the pixels a model that rounds images sees nothing move.
    delta = delta.clamp_min(search.oracle.grain / 2 * math.sqrt(d))
    if step == 1:
        delta = torch.full_like(far, 0.1)
    rng = search.oracle.rng.rows(rows).restart(step)  # how many draws came before depends on other rows
    normal = _normal(search, z, rows, delta, many, halvings, rng)
    reached, at = _stepped(search, z, rows, normal, far / math.sqrt(step))
    if len(at):
        moved = search.back(reached[at], rows[at], halvings)
        points = points.index_copy(0, rows[at], moved)
    return points


def _normal(
    search: Decisions, z: Tensor, rows: Tensor, delta: Tensor, many: int, halvings: int, rng: RowRandom
) -> Tensor:
    """The estimated direction into the successes at z [N, C, H, W]: unit length (l2) or signs (linf).

    many: points per row; fewer where the budget is short.
    """
    ball, shape = search.ball, tuple(z.shape[1:])
    wanted = (search.left[rows] - halvings).clamp(max=many)
    weighed, plain = torch.zeros_like(z), torch.zeros_like(z)
    signs = torch.zeros_like(delta)
    most = max(1, _CHUNK // max(1, z.numel()))
    for begin in range(0, many, most):
        count = min(most, many - begin)
        u = torch.stack([_drawn(rng, ball, shape) for _ in range(count)], 1).to(z.dtype)
        u = u / torch.linalg.vector_norm(u.flatten(2), dim=2).clamp_min(_TINY)[:, :, None, None, None]
        wide = delta[:, None, None, None, None]
        tries = (z[:, None] + wide * u).clamp(ball.low, ball.high)
        u = (tries - z[:, None]) / wide.clamp_min(_TINY)
        asked = torch.arange(begin, begin + count, device=z.device) < wanted[:, None]
        of, _ = asked.nonzero(as_tuple=True)
        phi = torch.zeros_like(asked, dtype=z.dtype)
        phi[asked] = search.ask(tries[asked], rows[of]).to(z.dtype) * 2 - 1
        used = asked.to(z.dtype)
        weighed += torch.einsum("nk,nkchw->nchw", phi, u)
        plain += torch.einsum("nk,nkchw->nchw", used, u)
        signs += phi.sum(1)
    mean = signs / wanted.clamp_min(1)
    alike = mean.abs() == 1  # all points on one side: their mean is all that is known
    v = weighed - column(torch.where(alike, torch.zeros_like(mean), mean), z) * plain
    return ball.steepest(v)


def _drawn(rng: RowRandom, ball: Ball, shape: tuple[int, ...]) -> Tensor:
    """A direction [N, *shape] per row, of any length."""
    if ball.norm == "linf":
        return rng.uniform(shape).mul_(2).sub_(1)
    return rng.normal(shape)


def _stepped(
    search: Decisions, z: Tensor, rows: Tensor, normal: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """(points, places int64 [M] of those that are successes) after steps that are halved until they are."""
    reached, open_ = z, torch.ones_like(size, dtype=torch.bool)
    for _ in range(_HALVINGS):
        at = (open_ & (search.left[rows] > 0)).nonzero()[:, 0]
        if not len(at):
            break
        tried = (z[at] + column(size[at], z[at]) * normal[at]).clamp(search.ball.low, search.ball.high)
        hit = search.ask(tried, rows[at])
        reached = reached.index_copy(0, at[hit], tried[hit])
        open_[at[hit]] = False
        size = size.index_copy(0, at, size[at] / 2)
    return reached, (~open_).nonzero()[:, 0]
