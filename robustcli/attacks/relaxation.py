"""Constraint relaxation: the search leaves the ball for a third of its steps, and gives up early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.losses import RowLoss, difference, margin
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.registry import attacks

_LEAST = 0.05  # the relaxation never gets smaller, in units of eps


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """The most: a sample that is given up nowhere, and promises to fall in every search."""
    searches = given["restarts"] * min(given["targets"], classes - 1)
    period = 2 * given["steps"] + given["steps"] // 3
    return int(2 * given["warm"] + 3 + searches * given["periods"] * period)


@attacks.register(
    "relaxation",
    kind="fixed",
    norms=("linf",),
    needs="gradient",
    precision="bf16",
    passes=_passes,
    use="a few passes an image, beside apgd; never alone, see docs/autoattack.md",
    deterministic=False,
    ends_early=True,
)
def relaxation(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    targets: Annotated[int, Ge(1)] = 3,
    periods: Annotated[int, Ge(1)] = 5,
    steps: Annotated[int, Ge(1)] = 30,
    restarts: Annotated[int, Ge(1)] = 5,
    warm: Annotated[int, Ge(1)] = 10,
    give_up: Annotated[float, Ge(0)] = 1.0,
    promising: Annotated[float, Ge(0)] = 0.05,
) -> Tensor:
    """x_{k+1} = P_r(x_k + s * eps * sign(grad (z_t - z_y))),  r = (1 + s) * eps, then eps, in turns.

    s halves from one period to the next, from 1/2 to 1/20 at least. Each period has three parts. In the
    first the ball is relaxed to radius (1 + s) * eps, and the projection of each point on the ball counts.
    In the second the search is inside the ball. The third begins with a projection on the radius
    (1 - s) * eps, and noise of s * eps. Classes t are the likeliest wrong ones after `warm` steps of PGD.

    A search is given up after the second part of a period where z_y - z_t > give_up * s. Only where z_y came
    within `promising` of another logit it is begun again from another point. Both numbers are in logits:
    a model whose logits are multiplied by 100 is given up at once.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W]; holds labels and one
            random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: linf, radius and box, in pixel units of [0, 1].
        targets: classes that are tried one after another, >= 1; the authors take ln K, rounded up. Where
            the caller asks for one target, only that one is, and the margin is ascended.
        periods: of a search, >= 1.
        steps: in each period, >= 1; cost = 2 passes a step, and 1 more in the first third.
        restarts: searches towards one class, >= 1.
        warm: steps of PGD on the cross-entropy, with step size eps / 2, >= 1.
        give_up: in logits, >= 0.
        promising: in logits, >= 0.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`.

    Raises:
        ValueError: a parameter outside its range.

    Source: Pan et al., AAAI 2025, "Efficient Robustness Evaluation via Constraint Relaxation",
        doi:10.1609/aaai.v39i6.32670 (no arXiv number); parameters: fzjcdt/constraint-relaxation-attack.
    """
    counts = {"targets": targets, "periods": periods, "steps": steps, "restarts": restarts, "warm": warm}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if min(give_up, promising) < 0:
        raise ValueError(f"give_up and promising must be >= 0, got {give_up} and {promising}")
    search = _Search(oracle, ball, periods, steps, give_up, promising)
    x, x_end = _warm(oracle, x, ball, warm)
    goals = _likeliest(oracle, oracle.logits(x_end), targets)
    oracle.score(x_end)
    x, x_end, goals = oracle.compact(x, x_end, goals)
    wanted = torch.ones_like(goals, dtype=torch.bool)
    for restart in range(restarts):
        near = torch.zeros_like(wanted)
        for k in range(goals.shape[1]):
            run = 1 + restart * goals.shape[1] + k
            near[:, k] = search(run, x, goals[:, k], wanted[:, k])
            x, x_end, goals, wanted, near = oracle.recall(x, x_end, goals, wanted, near)
        wanted = near
    return oracle.result(x_end)


def _warm(oracle: Oracle, x: Tensor, ball: Ball, steps: int) -> tuple[Tensor, Tensor]:
    """(clean pixels, last points) of the rows that stand after PGD on the cross-entropy: [R, C, H, W]."""
    x_adv = ball.random_point(x, oracle.rng)
    for _ in range(steps):
        grad = oracle.gradient(x_adv, "ce").grad
        x_adv = ball.project(x, x_adv + ball.eps / 2 * ball.steepest(grad))
        x, x_adv = oracle.compact(x, x_adv)
    return x, x_adv


def _likeliest(oracle: Oracle, logits: Tensor, count: int) -> Tensor:
    """The `count` likeliest wrong classes by these logits [R, K], int64 [R, T]; or the target alone."""
    if oracle.target is not None:
        return oracle.target[:, None]
    wrong = logits.scatter(1, oracle.y[:, None], float("-inf"))
    index: Tensor = wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices
    return index


class _Rows(NamedTuple):
    """The rows that are searched on.

    Args:
        x, x_adv: clean pixels and points, [R, C, H, W]. goal: the class to head for, int64 [R].
        at: the places of these rows among those in play before the search, int64 [R].
    """

    x: Tensor
    x_adv: Tensor
    goal: Tensor
    at: Tensor


@dataclass(frozen=True)
class _Search:
    """One search towards one class for each row; parameters as in `relaxation`."""

    oracle: Oracle
    ball: Ball
    periods: int
    steps: int
    give_up: float
    promising: float

    def __call__(self, run: int, x: Tensor, goal: Tensor, wanted: Tensor) -> Tensor:
        """Which rows came near to falling, bool [R]; the oracle must `recall` the rows afterwards.

        Args:
            run: number of the search, >= 1, which its random numbers depend on.
            x: clean pixels [R, C, H, W] of the rows in play. goal: int64 [R].
            wanted: bool [R], the rows to search for; the others rest.
        """
        near = torch.zeros_like(wanted)
        at = wanted.nonzero()[:, 0]
        x, goal = self.oracle.rest(at, x, goal)
        rows = _Rows(x, self.ball.random_point(x, self._rng(run, 0)), goal, at)
        for k in range(self.periods):
            s = max(0.5 ** (k + 1), _LEAST)
            for i in range(self.steps):
                if not len(rows.x):
                    return near
                if i == 2 * (self.steps // 3):
                    rows = rows._replace(x_adv=self._shaken(rows, s, self._rng(run, k + 1)))
                rows = self._step(rows, i, s, near)
        return near

    def _rng(self, run: int, number: int) -> RowRandom:
        """The random streams of the rows in play for this part of a search."""
        return self.oracle.rng.restart(run * (self.periods + 1) + number)

    def _shaken(self, rows: _Rows, s: float, rng: RowRandom) -> Tensor:
        """Points [R, C, H, W] of the ball: drawn in to radius (1 - s) * eps, with noise of s * eps."""
        inner, noise = replace(self.ball, eps=(1 - s) * self.ball.eps), s * self.ball.eps
        drawn = inner.project(rows.x, rows.x_adv)
        drawn = drawn + noise * rng.uniform(tuple(drawn.shape[1:])).mul_(2).sub_(1).to(drawn.dtype)
        return self.ball.project(rows.x, drawn)

    def _step(self, rows: _Rows, i: int, s: float, near: Tensor) -> _Rows:
        """Step i of a period from the points of `rows`; `near`, bool, is set where a row came near."""
        third, ball = self.steps // 3, self.ball
        inside = not 0 < i <= third
        value, _, grad = self.oracle.gradient(rows.x_adv, self._ascent(rows.goal), scored=inside)
        if inside:
            near[rows.at[value > -self.promising]] = True
        x, x_adv, goal, at, value, grad = self.oracle.compact(*rows, value, grad)
        if i == 2 * third - 1:
            stay = (~(value < -self.give_up * s)).nonzero()[:, 0]
            x, x_adv, goal, at, grad = self.oracle.rest(stay, x, x_adv, goal, at, grad)
        if i < third:
            ball = replace(ball, eps=(1 + s) * ball.eps)
        x_adv = ball.project(x, x_adv + s * self.ball.eps * ball.steepest(grad))
        if i < third:
            logits = self.oracle.logits(self.ball.project(x, x_adv))
            near[at[self._margin(logits) > -self.promising]] = True
            x, x_adv, goal, at = self.oracle.compact(x, x_adv, goal, at)
        return _Rows(x, x_adv, goal, at)

    def _ascent(self, goal: Tensor) -> RowLoss | str:
        """z_t - z_y with the classes t = goal, int64 [R]; in a targeted search the margin of the target."""
        return "margin" if self.oracle.target is not None else RowLoss(difference, (self.oracle.y, goal))

    def _margin(self, logits: Tensor) -> Tensor:
        """The margin [R] of logits [R, K], > 0 where they are a success."""
        if self.oracle.target is None:
            return margin(logits, self.oracle.y)
        return -margin(logits, self.oracle.target)
