"""SurFree: shorten the way along circles through the clean image, in random directions, from labels alone."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.decisions import Decisions
from robustcli.core.geometry import Ball, column
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.registry import attacks

_LAST = 8  # halvings of the last way back
_NEW, _OTHER, _WIDER = 0, 1, 2  # what a row asks next: a new direction, its other side, a wider angle
_TINY = 1e-12


@attacks.register(
    "surfree",
    kind="minimal",
    norms=("l2",),
    needs="decisions",
    precision="fp32",
    passes=lambda given, classes, norm: given["queries"],
    use="models of which only the label is seen, with some hundred queries an image",
    deterministic=False,
)
def surfree(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    queries: Annotated[int, Ge(2)] = 5000,
    angle: Annotated[float, Gt(0), Le(60)] = 30.0,
    rho: Annotated[float, Gt(0), Le(1)] = 0.95,
    share: Annotated[float, Gt(0), Le(1)] = 0.5,
    past: Annotated[int, Ge(0)] = 10,
    widen: Annotated[int, Ge(0)] = 2,
) -> Tensor:
    """z(a) = x + r cos a (cos a u + sin a v),  r u = z - x,  a = +-angle: kept where it is still a success.

    z(a) runs over the circle whose diameter is the way from x to z; its distance to x is r cos a. v is random
    in the low frequencies of the cosine transform, and orthogonal to u and to the last directions. A success
    is tried at wider angles, and makes the next angle wider; a direction without one makes it narrower.

    Args:
        oracle: says which points are successes; holds one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: box; points may leave its radius.
        queries: model passes per row, >= 2, all counted: starts, both ways back and the last point.
        angle: the first a, in degrees, in (0, 60].
        rho: factor on the angle after a direction without a success, and its divisor after one, in (0, 1].
        share: of the frequencies, the lowest ones, in (0, 1].
        past: how many directions before the next one is orthogonal to, >= 0.
        widen: how many wider angles are tried after a success, >= 0.

    Returns:
        x_adv [B, C, H, W], detached, in the box; rows never broken come back as the oracle keeps them.

    Raises:
        ValueError: queries < 2, or another number outside its bounds.

    Source: Maho, Furon & Le Merrer, CVPR 2021, arXiv:2011.12807. It has no linf form: the circle is Euclid's.
    """
    if queries < 2 or not 0 < angle <= 60 or not 0 < rho <= 1 or not 0 < share <= 1 or min(past, widen) < 0:
        given = f"queries {queries}, angle {angle}, rho {rho}, share {share}, past {past}, widen {widen}"
        raise ValueError(f"a parameter of surfree is outside its bounds: {given}")
    search = Decisions(oracle, x, ball, queries)
    search.begin(halvings=_LAST)
    walk = _Walk(search, angle, rho, share, past, widen)
    turn = 0
    while len(search.left) and bool((search.left > _LAST).any()):
        walk.turn(turn)
        turn += 1
    rows = (torch.isfinite(search.far) & (search.left > 0)).nonzero()[:, 0]
    search.back(search.best[rows], rows, _LAST)
    return oracle.result(search.best)


class _Walk:
    """One query of each row per turn. What a row asks next depends on its own answers alone.

    Tensors of the R rows in play: `mode`; `most`, the angle that a direction begins with; `sign` of the side
    that succeeded; `low`, `high`, angles that succeeded and failed; `tries` at wider angles; `base`, the
    point that a direction began at; `v`, the direction; `past` [R, L, d] and how many there were, `count`.
    """

    def __init__(
        self, search: Decisions, angle: float, rho: float, share: float, past: int, widen: int
    ) -> None:
        self.search, self.rho, self.widen = search, rho, widen
        x = search.x
        count = len(x)
        self.mode = torch.full((count,), _NEW, device=x.device)
        self.most = torch.full((count,), math.radians(angle), device=x.device)
        self.sign, self.low, self.high = (torch.zeros_like(self.most) for _ in range(3))
        self.tries, self.count = torch.zeros_like(self.mode), torch.zeros_like(self.mode)
        self.base, self.v = search.best, torch.zeros_like(x)
        self.past = x.new_zeros(count, past, math.prod(x.shape[1:]))
        self.down, self.across = (_cosines(side, x) for side in x.shape[2:])
        self.mask = _lowest(share, x)
        self.weight = torch.tanh(self.down @ x @ self.across.T)

    def turn(self, number: int) -> None:
        """One query of each row that has more than those for the last way back."""
        search = self.search
        rows = (search.left > _LAST).nonzero()[:, 0]
        fresh = rows[self.mode[rows] == _NEW]
        if len(fresh):
            rng = search.oracle.rng.rows(fresh).restart(number + 1)
            self.base = self.base.index_copy(0, fresh, search.best[fresh])
            self.v = self.v.index_copy(0, fresh, self._direction(fresh, rng))
        a = self._angles(rows)
        points = self._circle(rows, a)
        hit = search.ask(points, rows)
        search.keep(points[hit], rows[hit])
        self._learn(rows, a.abs(), hit)
        if bool(hit.any()):
            own = ("mode", "most", "sign", "low", "high", "tries", "base", "v", "past", "weight", "count")
            for name, left in zip(own, search.leave(*(getattr(self, n) for n in own)), strict=True):
                setattr(self, name, left)

    def _angles(self, rows: Tensor) -> Tensor:
        """The signed angle [N] that each row tries next."""
        mode, most, low, high = self.mode[rows], self.most[rows], self.low[rows], self.high[rows]
        wider = torch.where(high > 0, (low + high) / 2, (2 * low).clamp_max(math.pi / 2.2))
        a = torch.where(mode == _OTHER, -most, most)
        return torch.where(mode == _WIDER, self.sign[rows] * wider, a)

    def _circle(self, rows: Tensor, a: Tensor) -> Tensor:
        """z(a) in the box, [N, C, H, W], for angles [N]."""
        x, way = self.search.x[rows], self.base[rows] - self.search.x[rows]
        length = torch.linalg.vector_norm(way.flatten(1), dim=1)
        along, aside = a.cos().square(), length * a.cos() * a.sin()
        z = x + column(along, x) * way + column(aside, x) * self.v[rows]
        return z.clamp(self.search.ball.low, self.search.ball.high)

    def _learn(self, rows: Tensor, a: Tensor, hit: Tensor) -> None:
        """What each row asks next, after its answer at the angle +-a [N]."""
        mode = self.mode[rows]
        first = (mode == _NEW) | (mode == _OTHER)
        won, lost = first & hit, (mode == _OTHER) & ~hit
        self.sign[rows] = torch.where(won, torch.where(mode == _NEW, 1.0, -1.0), self.sign[rows])
        self.low[rows] = torch.where(hit, a, self.low[rows])
        failed = torch.where((mode == _WIDER) & ~hit, a, self.high[rows])
        self.high[rows] = torch.where(won, torch.zeros_like(a), failed)
        self.tries[rows] = torch.where(won, 0, self.tries[rows] + (mode == _WIDER))
        scale = torch.where(won, 1 / self.rho, torch.where(lost, self.rho, 1.0))
        self.most[rows] = (self.most[rows] * scale).clamp_max(math.pi / 3)
        done = lost | (((mode == _WIDER) | won) & (self.tries[rows] >= self.widen))
        following = torch.where(won | (mode == _WIDER), _WIDER, _OTHER)
        self.mode[rows] = torch.where(done, _NEW, following)

    def _direction(self, rows: Tensor, rng: RowRandom) -> Tensor:
        """Unit directions [N, C, H, W] of low frequencies, orthogonal to u and to those before."""
        x = self.search.x[rows]
        draws = rng.integers(-1, 2, tuple(x.shape[1:])).to(x.dtype)
        v = (self.down.T @ (draws * self.mask * self.weight[rows]) @ self.across).flatten(1)
        past = self.past[rows]
        v = v - torch.einsum("nl,nld->nd", torch.einsum("nld,nd->nl", past, v), past)
        u = (self.base[rows] - x).flatten(1)
        u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(_TINY)
        v = v - (v * u).sum(1, keepdim=True) * u
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(_TINY)
        if self.past.shape[1]:
            self.past[rows, self.count[rows] % self.past.shape[1]] = v
            self.count[rows] += 1
        direction: Tensor = v.reshape(x.shape)
        return direction


def _cosines(side: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) [side, side]: row k has frequency k."""
    at = torch.arange(side, device=like.device, dtype=like.dtype)
    table = torch.cos(math.pi / side * (at[None, :] + 0.5) * at[:, None]) * math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table


def _lowest(share: float, like: Tensor) -> Tensor:
    """1 at this share of the frequencies [H, W], those of the smallest sum of both, and 0 elsewhere."""
    height, width = like.shape[2:]
    order = torch.arange(height)[:, None] + torch.arange(width)
    kept = order.flatten().argsort(stable=True)[: max(1, int(share * height * width))]
    mask = torch.zeros(height * width).index_fill(0, kept, 1.0)
    return mask.reshape(height, width).to(like)
