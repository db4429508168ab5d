"""Fast adaptive boundary attack.

`fab` has more than 50 lines: most are its documentation, and its nested loops are one search.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.boundary import Boundary, nearest_boundary, rivals
from robustcli.core.geometry import Ball, column
from robustcli.core.hyperplane import dot, length, to_plane
from robustcli.core.oracle import Oracle
from robustcli.core.places import Places
from robustcli.core.random import RowRandom
from robustcli.registry import attacks

Start = Literal["clean", "random"]

_TINY = 1e-12


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """In each step of each search two per boundary linearised and one for the new point; 1 at the end."""
    if given["targeted"]:
        searches = max(0, min(given["skip"] + given["targets"], classes - 1) - given["skip"])
        return int(3 * given["steps"] * searches * given["restarts"] + 1)
    return int((2 * (classes - 1) + 1) * given["steps"] * given["restarts"] + 1)


@attacks.register(
    "fab",
    kind="minimal",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="fp32",
    passes=_passes,
    use="small distances, and a second opinion beside apgd that no scaling of the logits disturbs",
    deterministic=False,
)
def fab(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    restarts: Annotated[int, Ge(1)] = 1,
    targets: Annotated[int, Ge(1)] = 9,
    skip: Annotated[int, Ge(0)] = 0,
    targeted: bool = True,
    alpha_max: Annotated[float, Ge(0), Le(1)] = 0.1,
    eta: Annotated[float, Ge(1)] = 1.05,
    beta: Annotated[float, Gt(0), Le(1)] = 0.9,
    start: Start = "clean",
) -> Tensor:
    """x_{k+1} = clip((1 - a) (x_k + eta d) + a (x + eta d')),  a = min(||d|| / (||d|| + ||d'||), alpha_max).

    d is the shortest way from x_k to the boundary linearised at x_k, and d' the shortest way from x to the
    same plane. a pulls the search towards x. Where x_{k+1} is a success, the search goes back to
    x + beta (x_{k+1} - x), and the boundary is linearised there.

    Args:
        oracle: answers with logits [B, K] and gradients [B, C, H, W] of logit differences.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm and box; points may leave its radius, which only bounds the random starts.
        steps: linearisations per class and restart, >= 1. One costs two forward passes and a backward one;
            there are `steps` * min(targets, K - 1) * `restarts`.
        restarts: searches per class, >= 1.
        targets: how many classes are searched for (FAB-T), those of the largest clean logits, >= 1; a
            targeted search has one boundary. All but the first are searched for in one batch, a few rows at a
            time.
        skip: how many of the likeliest wrong classes FAB-T leaves out, >= 0: those that a stage before has
            tried. A targeted search ignores it.
        targeted: false for one search that steps to the nearest of all K - 1 boundaries, `steps` * (K - 1)
            forward and backward passes per restart.
        alpha_max: largest a, in [0, 1].
        eta: overshoot beyond the plane, >= 1.
        beta: what a success keeps of its distance, in (0, 1].
        start: "clean": the first restart starts at x, the others at random points; "random": all do. A random
            point's distance from x is half that of the nearest success, and at most half the radius.

    Returns:
        x_adv [B, C, H, W], detached, in the box; the nearest success per row is the oracle's to keep.

    Raises:
        ValueError: a parameter outside its range.

    Source: Croce & Hein, ICML 2020, arXiv:1907.02044; FAB-T: Croce & Hein, ICML 2020, arXiv:2003.01690. In
        fp32 and without random starts each search is that of the authors' code (fra31/auto-attack), up to
        rounding.
    """
    _check(steps, restarts, targets, skip, alpha_max, eta, beta)
    if start not in get_args(Start):
        raise ValueError(f"start must be clean or random, got {start!r}")
    if oracle.target is not None:
        skip = 0
    last = rivals(oracle, skip + targets).shape[1]
    runs = max(0, last - skip) if targeted else 1
    if not runs:
        oracle.note(f"fab: skip {skip} leaves none of the {last} wrong classes: nothing is tried")
    reach, x_adv, number = x.new_full((len(x),), float("inf")), x, 0
    places = Places(oracle, x)
    while number < restarts * runs and oracle.alive:
        restart, rank = divmod(number, runs)
        x_adv, count = x, 1
        if restart > 0 or start == "random":
            x_adv = _random_start(x, reach, ball, oracle.rng.restart(number))
        elif rank:  # most rows fall in the first search, and a random start waits for `reach`
            count = places.at_once(runs - rank)
        tried, heads = last, slice(skip + rank, skip + rank + count)
        if not targeted:
            tried, heads = oracle.clean().shape[1] - 1, slice(None)
        search = partial(_turn, oracle, tried, heads, count, ball, steps, alpha_max, eta, beta)
        done, (x, x_adv, reach) = places.search(count, search, x, x_adv, reach)
        number += done * count
    return oracle.result(x_adv)


def _turn(
    oracle: Oracle,
    tried: int,
    heads: slice,
    count: int,
    ball: Ball,
    steps: int,
    alpha_max: float,
    eta: float,
    beta: float,
    few: int,
    x: Tensor,
    x_adv: Tensor,
    reach: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One search of all rows, or `count` searches of the first `few`: (x, x_adv, reach) after them.

    The rows that waited come first, see `core.places`. Of several searches each heads for one class.

    Args:
        tried: how many `rivals` there are; heads: which of them are headed for.
        ball, steps, alpha_max, eta, beta: as in `fab`.
        x, x_adv: clean pixels and where the search begins, [R, C, H, W]; where it ended last.
        reach: [R], the distance of the nearest success.
    """
    others = rivals(oracle, tried)[:, heads]
    if count == 1:
        return _search(oracle, x, x_adv, reach, others, ball, steps, alpha_max, eta, beta)
    oracle.spread(count, few)
    clean, begin, own = (t[:few].repeat_interleave(count, 0) for t in (x, x_adv, reach))
    rest, part = (x[few:], x_adv[few:], reach[few:]), others[:few].reshape(-1, 1)
    x, x_adv, reach = _search(oracle, clean, begin, own, part, ball, steps, alpha_max, eta, beta)
    x_adv = oracle.gather(x_adv, rest[1])
    return torch.cat((rest[0], x[::count])), x_adv, torch.cat((rest[2], reach.view(-1, count).amin(1)))


def _search(
    oracle: Oracle,
    x: Tensor,
    x_adv: Tensor,
    reach: Tensor,
    others: Tensor,
    ball: Ball,
    steps: int,
    alpha_max: float,
    eta: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`steps` linearisations of `fab` from x_adv: (x, x_adv, reach) of the rows still in play.

    Args:
        x, x_adv: clean pixels and where the search begins, [R, C, H, W].
        reach: [R], the distance of the nearest success.
        others: the classes k whose boundaries count, int64 [R, T].
        ball, steps, alpha_max, eta, beta: as in `fab`.
    """
    for _ in range(steps):
        boundary = nearest_boundary(oracle, x_adv, ball, others)
        x_adv = _step(x, x_adv, boundary, ball, alpha_max, eta)
        hit = oracle.hit(oracle.logits(x_adv))
        reach = torch.where(hit, torch.minimum(reach, length(x_adv - x, ball.norm)), reach)
        x_adv = torch.where(column(hit, x), x + beta * (x_adv - x), x_adv)
        x, x_adv, reach, others = oracle.compact(x, x_adv, reach, others)
        if not oracle.alive:
            break
    return x, x_adv, reach


def _check(
    steps: int, restarts: int, targets: int, skip: int, alpha_max: float, eta: float, beta: float
) -> None:
    """ValueError for a parameter outside its range."""
    if steps < 1 or restarts < 1 or targets < 1:
        raise ValueError(f"steps, restarts and targets must be >= 1, got {steps}, {restarts} and {targets}")
    if skip < 0:
        raise ValueError(f"skip must be >= 0, got {skip}")
    if not 0 <= alpha_max <= 1:
        raise ValueError(f"alpha_max must be in [0, 1], got {alpha_max}")
    if not eta >= 1:
        raise ValueError(f"eta must be >= 1, got {eta}")
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be in (0, 1], got {beta}")


def _step(x: Tensor, x_adv: Tensor, boundary: Boundary, ball: Ball, alpha_max: float, eta: float) -> Tensor:
    """clip((1 - a) (x_adv + eta d) + a (x + eta d')): x_{k+1} of `fab`, [R, C, H, W], from x_k = x_adv."""
    value, normal, _ = boundary
    value_at_x = value + dot(normal, x - x_adv).nan_to_num()  # a sum over huge gradients may overflow
    near, far = to_plane(x_adv, normal, value, ball), to_plane(x, normal, value_at_x, ball)
    size = length(near, ball.norm)
    a = column((size / (size + length(far, ball.norm)).clamp_min(_TINY)).clamp_max(alpha_max), x)
    return ((1 - a) * (x_adv + eta * near) + a * (x + eta * far)).clamp_(ball.low, ball.high)


def _random_start(x: Tensor, reach: Tensor, ball: Ball, rng: RowRandom) -> Tensor:
    """x + r u / ||u||, in the box;  r = min(reach, eps) / 2, u uniform (linf) or normal.

    reach: [R], pixel units, the distance of the nearest success; infinite where there is none.
    """
    tail = tuple(x.shape[1:])
    if ball.norm == "linf":
        u = rng.uniform(tail).mul_(2).sub_(1)
    else:
        u = rng.normal(tail)
    scale = 0.5 * reach.clamp_max(ball.eps) / length(u, ball.norm).clamp_min(_TINY)
    return (x + column(scale, x) * u.to(x.dtype)).clamp_(ball.low, ball.high)
