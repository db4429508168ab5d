"""Square Attack: random search with square windows, by scores alone.

The file is long: a third is documentation, and the published search has two forms, painted windows and
bumps. `square` and `_leg` have more than 50 lines: one by its documentation, the other is a single loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.copies import sent
from robustcli.core.geometry import Ball, Norm
from robustcli.core.oracle import Oracle
from robustcli.core.pace import Pace
from robustcli.core.random import RowRandom
from robustcli.errors import out_of_memory
from robustcli.registry import attacks, losses

# p halves after the queries of these numbers, counted from 0.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_LEG = 4  # blocks after which rows that are ahead of others wait for them
_BLOCK = 64  # queries whose random numbers are drawn at once: many small draws cost more than a small network
_ORDER: dict[Norm, int] = {"l2": 2, "l1": 1}
_DECAY: dict[Norm, int] = {"l2": 2, "l1": 4}  # published: under l1 a bump must be narrow
_TINY = 1e-12


@attacks.register(
    "square",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="scores",
    precision="fp32",
    passes=lambda given, classes, norm: given["restarts"] * (given["queries"] + 2),
    use="gradients that may be masked or missing",
    deterministic=False,
)
def square(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    queries: Annotated[int, Ge(1)] = 5000,
    p: Annotated[float, Gt(0), Le(1)] = 0.8,
    restarts: Annotated[int, Ge(1)] = 1,
    loss: Literal["margin", "ce"] = "margin",
    rescale: bool = False,
) -> Tensor:
    """x_{k+1} = x_k with one random s x s window changed, kept if the loss grows;  s = sqrt(p_k H W).

    p_k starts at p and is halved after set numbers of queries.
        linf: the search starts at x plus vertical stripes of +-eps. A window becomes x +- eps, one sign per
            channel. A window that has these pixels already gets the opposite signs; the authors draw again.
        l2: the search starts at x plus tiled bumps. A window gets a bump of random sign, whose length is
            taken from this window and a second one. The second one becomes x.
        l1: as l2, with l1 lengths, steeper bumps and the exact projection.
    In the authors' code all rows share the windows. Here each row draws its own, so that its verdict does not
    depend on the batch, and a window may touch the last row and column.

    Args:
        oracle: answers with logits [B, K]; holds labels and one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        queries: windows tried per restart, >= 1; cost = `queries` + 1 forward passes per restart.
        p: p_0, share of the image that the first windows cover, in (0, 1].
        restarts: independent searches, >= 1; the worst point of all is kept per row.
        loss: what has to grow: max_{k != y} z_k - z_y, or cross-entropy; with a target its negative towards
            the target.
        rescale: p halves at fixed shares of `queries` (after 10 of 10,000, 50, 200 and so on) instead of at
            fixed numbers.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball` around x.

    Raises:
        ValueError: queries < 1, restarts < 1, p outside (0, 1].

    Source: Andriushchenko et al., ECCV 2020, arXiv:1912.00049. Schedule as in AutoAttack, Croce & Hein, ICML
        2020, arXiv:2003.01690; l1: Croce & Hein, ICML 2021, arXiv:2103.01208.
    """
    if queries < 1 or restarts < 1 or not 0 < p <= 1:
        given = f"queries {queries}, restarts {restarts}, p {p}"
        raise ValueError(f"queries and restarts must be >= 1 and p in (0, 1], got {given}")
    blocks = list(_sides(queries, p, x.shape[2], x.shape[3], ball.norm != "linf", rescale))
    for _ in range(restarts):
        x_adv = _start(x, ball, oracle.rng)
        best = _score(oracle, oracle.logits(x_adv), loss)
        x, x_adv, best = oracle.compact(x, x_adv, best)
        pace = Pace(x, steady=oracle.steady)
        for side, counts in _legs(blocks):
            x, x_adv, best = _leg(oracle, x, x_adv, best, ball, side, counts, loss, pace)
        if not oracle.alive:
            break
        if restarts > 1:
            oracle.score(x_adv)
            x, x_adv = oracle.compact(x, x_adv)
    return oracle.result(x_adv)


def _leg(
    oracle: Oracle,
    x: Tensor,
    x_adv: Tensor,
    best: Tensor,
    ball: Ball,
    side: int,
    counts: list[int],
    loss: str,
    pace: Pace,
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of one leg of the search, with windows of one side: (x, x_adv, best) after them.

    A row's next k queries are asked about in one batch, each as if none before it were kept. The first that
    is kept ends them: those after it are asked about anew. So points and order are those of one query at a
    time, and rows wait for each other at the end of the leg alone.

    Args:
        x, x_adv: clean pixels and where the search is, [R, C, H, W]; best: its score [R].
        counts: queries of each block whose random numbers are drawn at once.
        pace: says k.
    """
    draws = [oracle.rng.uniform((count, 5 + x.shape[1])) for count in counts]
    into, source, lying, sign = _plan(torch.cat(draws, 1), side, x)
    window, bumps = _window(side, x), _bumps(side, ball.norm, x).flatten(1)
    # Where each row is, is known on the CPU: a device is asked once a round, by `meet`.
    at, end, place = torch.zeros(len(x), dtype=torch.int64), sum(counts), x.device
    order = torch.arange(len(x), device=place)
    while oracle.alive and (first := int(at.min())) < end:
        waiting = (at < end).nonzero()[:, 0]
        k = pace.ahead(len(waiting), end - first)
        behind, begun = sent(torch.stack((waiting, at[waiting])), place).unbind()
        turn = begun[:, None] + torch.arange(k, device=place)
        of, query = behind.repeat_interleave(k), turn.clamp_max(end - 1).flatten()
        to, signs = into[of, query] + window, sign[of, query]
        if ball.norm == "linf":
            tries = _paint(x[of], x_adv[of], ball, to, signs)
        else:
            cleared = source[of, query] + window
            tries = _move(x[of], x_adv[of], ball, to, cleared, bumps[lying[of, query]], signs)
        try:
            logits = oracle.ahead(tries, behind)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not pace.failed():
                raise
            continue
        value = _score(oracle, logits, loss, of)
        kept = (value > best[of]).view(-1, k) & (turn < end)
        counted = torch.where(kept.any(1), kept.int().argmax(1) + 1, (end - begun).clamp_max(k))
        counted, any_kept = oracle.meet(tries, behind, logits, counted, kept.any(1))
        last = torch.arange(len(waiting)) * k + counted - 1
        chosen, moved = sent(torch.stack((last, waiting))[:, any_kept], place).unbind()
        x_adv, best = x_adv.index_copy(0, moved, tries[chosen]), best.index_copy(0, moved, value[chosen])
        at = at.index_add(0, waiting, counted)
        pace.saw(int(counted.sum()), len(moved))
        x, x_adv, best, order, into, source, lying, sign = oracle.compact(
            x, x_adv, best, order, into, source, lying, sign
        )
        if len(order) < len(at):
            at, order = at[order.cpu()], torch.arange(len(order), device=place)
    return x, x_adv, best


def _legs(blocks: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """(window side, queries of each block): up to `_LEG` blocks that follow each other and share a side."""
    for side, group in groupby(blocks, key=lambda block: block[0]):
        counts = [count for _, count in group]
        for first in range(0, len(counts), _LEG):
            yield side, counts[first : first + _LEG]


def _sides(
    queries: int, p: float, height: int, width: int, bumps: bool, rescale: bool
) -> Iterator[tuple[int, int]]:
    """(window side, number of queries with it), in order; `_BLOCK` queries at most, `queries` in all."""
    first, share = 0, 1.0
    if rescale:
        share = queries / 10000
    for halvings, last in enumerate((*_HALVINGS, math.inf)):
        end = math.ceil(min(queries, (last + 1) * share))
        side = _side(p / 2**halvings * height * width, min(height, width), bumps)
        while first < end:
            count = min(_BLOCK, end - first)
            yield side, count
            first += count


def _side(area: float, most: int, bumps: bool) -> int:
    """The side of a window of `area` pixels, at most `most`; for bumps odd and at least 3, as published."""
    side = round(math.sqrt(area))
    if bumps:
        return min(max(side + (side % 2 == 0), 3), most)
    # A painted window as large as the image could only flip whole channels.
    return max(1, min(side, most - 1))


def _score(oracle: Oracle, logits: Tensor, loss: str, of: Tensor | None = None) -> Tensor:
    """loss(z, y), or -loss(z, target) in a targeted search: [N]; NaN becomes -inf, which is never kept.

    of: which of the rows in play each of the logits [N, K] belongs to, int64 [N]; None = all in order.
    """
    fn, label = losses.get(loss).fn, oracle.y if oracle.target is None else oracle.target
    if of is not None:
        label = label[of]
    value: Tensor = fn(logits, label)
    if oracle.target is not None:
        value = -value
    return value.nan_to_num(nan=-math.inf)


def _sign(u: Tensor, like: Tensor) -> Tensor:
    """-1 or 1 with equal chance, from uniforms of any shape."""
    return torch.where(u < 0.5, -1.0, 1.0).to(like.dtype)


def _plan(u: Tensor, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What n queries change, from uniforms u [R, n, 5 + C].

    Returns:
        Upper left corner of the window, and of the second window: places h * W + w in the flattened image,
        int64 [R, n, 1, 1], uniform over all positions.
        Direction of the bump, int64 [R, n]: the index into `_bumps`, 0 or 1.
        Signs, [R, n, C, 1], -1 or 1.
    """
    height, width = like.shape[2:]
    top = (u[..., 0:4:2] * (height - side + 1)).long()
    left = (u[..., 1:4:2] * (width - side + 1)).long()
    corner = (top * width + left)[..., None, None]
    return corner[:, :, 0], corner[:, :, 1], (u[..., 4] < 0.5).long(), _sign(u[..., 5:], like)[..., None]


def _window(side: int, like: Tensor) -> Tensor:
    """int64 [C, side * side]: places h * W + w of the pixels of a window whose upper left corner is 0."""
    along = torch.arange(side, device=like.device)
    return (along[:, None] * like.shape[3] + along[None, :]).flatten().expand(like.shape[1], -1)


def _start(x: Tensor, ball: Ball, rng: RowRandom) -> Tensor:
    """Where a search begins, [R, C, H, W]: stripes under linf, else tiled bumps."""
    if ball.norm == "linf":
        return _stripes(x, ball, rng)
    return _tiles(x, ball, rng)


def _stripes(x: Tensor, ball: Ball, rng: RowRandom) -> Tensor:
    """x +- eps with one sign per column and channel: networks are sensitive to such high frequencies."""
    channels, _, width = x.shape[1:]
    return (x + ball.eps * _sign(rng.uniform((channels, 1, width)), x)).clamp_(ball.low, ball.high)


def _paint(x: Tensor, x_adv: Tensor, ball: Ball, to: Tensor, sign: Tensor) -> Tensor:
    """x_adv with one window per row set to x +- eps.

    to: places of the window int64 [R, C, side * side]; sign: [R, C, 1], -1 or 1.
    """
    clean, flat = x.flatten(2).gather(2, to), x_adv.flatten(2)
    colour = ball.eps * sign
    new = (clean + colour).clamp_(ball.low, ball.high)
    idle = (new == flat.gather(2, to)).flatten(1).all(1)
    new = torch.where(idle[:, None, None], (clean - colour).clamp_(ball.low, ball.high), new)
    return flat.scatter(2, to, new).reshape(x.shape)


def _long(delta: Tensor, norm: Norm) -> Tensor:
    """||delta||_p over the last dimension, kept as a dimension of size 1; l2 or l1."""
    size: Tensor = torch.linalg.vector_norm(delta, ord=_ORDER[norm], dim=-1, keepdim=True)
    return size


def _bump(height: int, width: int, norm: Norm, like: Tensor) -> Tensor:
    """b / ||b|| [height, width], b = sum_{c >= d} (c + 1)^-q: a bump, highest in the middle.

    d is the Chebyshev distance from the middle, in pixels. c ends at half the longer side. q is 2 under l2
    and 4 under l1.
    """
    far = torch.maximum(
        (torch.arange(height, device=like.device) - height // 2).abs()[:, None],
        (torch.arange(width, device=like.device) - width // 2).abs()[None, :],
    )
    rings = torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype)
    term = rings.pow(-_DECAY[norm])
    bump = term.flip(0).cumsum(0).flip(0)[far]
    return bump / _long(bump.flatten(), norm).clamp_min(_TINY)


def _bumps(side: int, norm: Norm, like: Tensor) -> Tensor:
    """[2, side, side]: a bump above the negative of another, and the transpose; both of length 1.

    Zeros under linf, which has no bumps.
    """
    if norm == "linf":
        return like.new_zeros(2, side, side)
    half = side // 2
    pair = torch.cat((_bump(half, side, norm, like), -_bump(side - half, side, norm, like)))
    return torch.stack((pair, pair.T)) / _long(pair.flatten(), norm)


def _tiles(x: Tensor, ball: Ball, rng: RowRandom) -> Tensor:
    """x [R, C, H, W] plus tiles of bumps, five tiles along the shorter side, cut by `_fitted`.

    Each tile is one of `_bumps`, drawn at random, with a random sign per channel.
    """
    channels, height, width = x.shape[1:]
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    u = rng.uniform((1 + channels, down, across))
    bumps = _bumps(side, ball.norm, x)[(u[:, :1] < 0.5).long()]
    tile = bumps * _sign(u[:, 1:], x)[..., None, None]  # [R, C, down, across, side, side]
    body = tile.transpose(3, 4).reshape(len(x), channels, down * side, across * side)
    delta = torch.zeros_like(x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = body
    return _fitted(x, delta, ball)


def _fitted(x: Tensor, delta: Tensor, ball: Ball) -> Tensor:
    """l2: clip(x + eps * delta / ||delta||). l1: the point of ball and box nearest to x + delta.

    x, delta: [R, C, H, W].
    """
    if ball.norm == "l1":
        return ball.project(x, x + delta)
    scale = ball.eps / _long(delta.flatten(1), ball.norm).add_(_TINY)
    return (x + delta * scale[:, :, None, None]).clamp_(ball.low, ball.high)


def _move(
    x: Tensor, x_adv: Tensor, ball: Ball, to: Tensor, source: Tensor, bump: Tensor, sign: Tensor
) -> Tensor:
    """x_adv with a longer change in one window, and none in a second.

    With delta = x_adv - x, and q = 2 under l2 or 1 under l1, per channel:
        u = bump * sign + delta_to / ||delta_to||: the new direction of the window `to`;
        s^q = ||delta_to||^q + ||delta_source||^q + (eps^q - ||delta||^q) / C: its new length;
        delta_to = s u / ||u||; delta_source = 0. Then `_fitted`. Pixels of both windows count to `to` alone.

    Args:
        x, x_adv: [R, C, H, W].
        to, source: places h * W + w of both windows, int64 [R, C, side * side].
        bump: [R, side * side], of length 1.
        sign: [R, C, 1], -1 or 1.
    """
    q, channels, delta = _ORDER[ball.norm], x.shape[1], (x_adv - x).flatten(2)
    old, emptied = delta.gather(2, to), delta.scatter(2, to, 0.0)
    mass = _long(old, ball.norm).pow(q) + _long(emptied.gather(2, source), ball.norm).pow(q)
    unused = (ball.eps**q - _long(delta.flatten(1), ball.norm).pow(q)).clamp_min_(0)[:, :, None] / channels
    new = bump[:, None, :] * sign + old / _long(old, ball.norm).add_(_TINY)
    size = (unused + mass).pow(1 / q)
    if ball.norm == "l1":
        size = size * channels  # as published; `_fitted` projects what is too long
    new = new / _long(new, ball.norm).add_(_TINY) * size
    moved = emptied.scatter(2, source, 0.0).scatter_(2, to, new)
    return _fitted(x, moved.reshape(x.shape), ball)
