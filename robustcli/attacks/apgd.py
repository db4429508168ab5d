"""Auto-PGD: projected gradient ascent with momentum that chooses its step size by itself.

The file, `apgd` and `_climb` are long: much is documentation, and the rest is one algorithm with its l1
form, which a reader wants beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from robustcli.core.boundary import rivals
from robustcli.core.geometry import Ball
from robustcli.core.losses import RowLoss, difference, dlr_targeted
from robustcli.core.oracle import Oracle
from robustcli.core.places import Places
from robustcli.core.random import RowRandom
from robustcli.core.search import checkpoints, stalled
from robustcli.registry import attacks

#: The name of a registered loss, or (logits [R, K], y [R], goal [R]) -> [R], which leads to the class `goal`.
Ascent = str | Callable[[Tensor, Tensor, Tensor], Tensor]
_KEPT = 0.75  # share of the gradient step; the rest goes on in the direction of the step before
_WIDEST: dict[str, float] = {"linf": 1.0, "l2": 1.0, "l1": 3.0}  # first radius in units of eps, as published


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """runs * (2 * (steps + balls) + 1), a run being one restart towards one class.

    Each step and the first point in each ball costs two passes, the last point of a run one.
    """
    runs = given["restarts"]
    if given["loss"] == "dlr-targeted":
        runs *= max(0, min(given["skip"] + given["targets"], classes - 1) - given["skip"])
    balls = len(_phases(Ball("linf", 1.0), given["steps"], given["widest"] or _WIDEST[norm]))
    return int(max(1, runs * (2 * (given["steps"] + balls) + 1)))


@attacks.register(
    "apgd",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=_passes,
    use="the number to report; no step size to choose",
    deterministic=False,
)
def apgd(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    restarts: Annotated[int, Ge(1)] = 1,
    loss: Literal["ce", "margin", "dlr", "dlr-targeted"] = "ce",
    targets: Annotated[int, Ge(1)] = 9,
    skip: Annotated[int, Ge(0)] = 0,
    rho: Annotated[float, Ge(0), Le(1)] = 0.75,
    widest: Annotated[float, Ge(1)] | None = None,
) -> Tensor:
    """x_{k+1} = P(x_k + 0.75 * (z - x_k) + 0.25 * (x_k - x_{k-1})),  z = P(x_k + a_k * steepest(grad_k)).

    P is the projection on the ball. a_0 is 2 * eps, and x_1 is z. At each checkpoint a row that oscillates or
    stands still halves its step a and goes on from its best point. Under l1 there is no momentum, a_0 is eps,
    and each step moves few pixels: see `_climb_sparsely`.

    With widest w > 1 the search takes 0.3 of its steps in a ball of radius w * eps, 0.3 in one of radius
    (w + 1) * eps / 2, and 0.4 in `ball`. A model that masks its gradients near the image often shows them
    further away.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W]; holds labels and one
            random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        steps: per restart and target, >= 1; cost = steps + 1 forward and backward passes (steps + 3 with a
            shrinking ball).
        restarts: independent random starts, >= 1; the worst point of all is kept per row.
        loss: "ce"; "margin"; "dlr"; or "dlr-targeted", which climbs towards each of the likeliest wrong
            classes in turn. With two classes dlr becomes the margin, with fewer than four dlr-targeted
            becomes z_t - z_y. Where the caller asks for one target, dlr-targeted is dlr towards it: z_t must
            pass every other logit, not only z_y.
        targets: how many classes dlr-targeted tries, in the order of the clean logits, >= 1; at most K - 1
            exist. All but the first are searched for in one batch, a few rows at a time.
        skip: how many of the likeliest wrong classes dlr-targeted leaves out, >= 0: those that a stage before
            has tried. Where the caller asks for one target, skip is not used.
        rho: share of rising steps, in [0, 1], up to which a row counts as oscillating; l1 does not use it.
        widest: first radius in units of eps, >= 1; None means 3 under l1 (published), else 1: all steps in
            the ball.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`; in training the point of the largest loss.

    Raises:
        ValueError: steps, restarts or targets < 1, skip < 0, rho outside [0, 1], widest < 1.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690; l1 and the shrinking ball: ICML 2021, arXiv:2103.01208.
        Starts are uniform in the ball (l1: projected Gaussian); the authors' l2 start lies on the sphere,
        their linf start has a pixel at the border. Their code compares the loss after the first step with 0,
        where the paper and we take the loss at the start.
    """
    _check(steps, restarts, targets, skip, rho, widest)
    ascent, goals = _headings(oracle, loss, targets, skip)
    phases, runs = _phases(ball, steps, widest or _WIDEST[ball.norm]), restarts * goals.shape[1]
    x_best, run, places = x, 0, Places(oracle, x)
    while run < runs:
        count = places.at_once(runs - run) if run else 1  # most rows fall in the first one
        search = partial(_search, oracle, ascent, range(run, run + count), phases, rho, runs > 1)
        done, (x, goals, x_best) = places.search(count, search, x, goals, x_best)
        run += done * count
    return oracle.result(x_best)


def _search(
    oracle: Oracle,
    ascent: Ascent,
    runs: range,
    phases: list[tuple[Ball, int]],
    rho: float,
    scored: bool,
    few: int,
    x: Tensor,
    goals: Tensor,
    x_best: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The searches of these numbers from the first `few` rows, in one batch: (x, goals, x_best) after them.

    The rows that waited come first, see `core.places`.

    Args:
        runs: numbers of the searches; number k heads for goal k modulo T, and begins at the point of restart
            k.
        phases: balls, and steps in each. rho: as in `apgd`.
        scored: whether the best points are met once more at the end, see `Oracle.score`.
        few: all rows where there is one search.
        x: clean pixels [R, C, H, W]. goals: classes to head for, int64 [R, T].
        x_best: [R, C, H, W], the best point of the last search of each row.
    """
    places, tried = len(runs), goals.shape[1]
    others, own = (x[few:], goals[few:], x_best[few:]), oracle.rng.rows(slice(few))
    x, goals = x[:few], goals[:few]
    x_best = _together([_first(x, phases[0][0], own.restart(run)) for run in runs])
    if places > 1:
        oracle.spread(places, few)
        heads = _together([goals[:, run % tried] for run in runs])[:, None]
        x, goals = x.repeat_interleave(places, 0), torch.cat((goals.repeat_interleave(places, 0), heads), 1)
    ask = _Question(oracle, ascent, -1 if places > 1 else runs[0] % tried)
    for current, count in phases:
        inside = current == phases[-1][0]
        if current.norm == "l1":
            x, goals, x_best = _climb_sparsely(ask, x, goals, x_best, current, count, scored=inside)
        else:
            x, goals, x_best = _climb(ask, x, goals, x_best, current, count, rho, scored=inside)
    x, goals, x_best = oracle.compact(x, goals, x_best)
    if scored:
        oracle.score(x_best)
    if places > 1:
        x, goals = torch.cat((others[0], x[::places])), torch.cat((others[1], goals[::places, :tried]))
        x_best = oracle.gather(x_best, others[2])
    return x, goals, x_best


def _together(parts: list[Tensor]) -> Tensor:
    """[len(parts) * R, ...]: the rows of the parts [R, ...], those of the first row first."""
    return parts[0] if len(parts) == 1 else torch.stack(parts, 1).flatten(0, 1)


def _check(steps: int, restarts: int, targets: int, skip: int, rho: float, widest: float | None) -> None:
    """ValueError for a parameter outside its range."""
    for name, value in (("steps", steps), ("restarts", restarts), ("targets", targets)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if skip < 0:
        raise ValueError(f"skip must be >= 0, got {skip}")
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be in [0, 1], got {rho}")
    if widest is not None and not widest >= 1:
        raise ValueError(f"widest must be >= 1, got {widest}")


def _headings(oracle: Oracle, loss: str, targets: int, skip: int) -> tuple[Ascent, Tensor]:
    """(what to ascend, goals): goals are the classes to head for, one after another, int64 [R, T].

    A registered loss reads no goal. For it T is 1, and the column only says how many searches there are.
    """
    own = oracle.y[:, None]
    if loss == "margin":
        return "margin", own
    if loss == "ce" or not oracle.alive:
        return "ce", own
    classes = oracle.clean().shape[1]
    if loss == "dlr" or oracle.target is not None:
        if classes > 2:
            return "dlr", own
        oracle.note(f"apgd: {loss} needs 3 classes, the model has {classes}: the margin is ascended")
        return "margin", own
    ascent: Ascent = dlr_targeted
    if classes < 4:
        ascent = difference
        needs = f"apgd: dlr-targeted needs 4 classes, the model has {classes}"
        oracle.note(f"{needs}: the plain logit difference is ascended")
    if classes - 1 <= skip:
        oracle.note(f"apgd: skip {skip} leaves none of the {classes - 1} wrong classes: nothing is tried")
    return ascent, rivals(oracle, skip + targets)[:, skip:]


@dataclass(frozen=True)
class _Question:
    """What a search asks at each point: the loss `ascent` and its gradient, towards one class per row.

    The class is in column `heading` of the goals.
    """

    oracle: Oracle
    ascent: Ascent
    heading: int

    def __call__(self, x_adv: Tensor, goals: Tensor, *, scored: bool = True) -> tuple[Tensor, Tensor]:
        """Loss [R] and input gradient [R, C, H, W] at x_adv [R, C, H, W]; a NaN loss becomes -inf.

        goals: int64 [R, T]. scored: as in `Oracle.gradient`.
        """
        value, _, grad = self.oracle.gradient(x_adv, self._loss(goals), scored=scored)
        return value.nan_to_num(nan=float("-inf")), grad

    def _loss(self, goals: Tensor) -> str | RowLoss:
        """The name of a registered loss, or `ascent` bound to y and to the goal of each row."""
        if isinstance(self.ascent, str):
            return self.ascent
        return RowLoss(self.ascent, (self.oracle.y, goals[:, self.heading]))


def _phases(ball: Ball, steps: int, widest: float) -> list[tuple[Ball, int]]:
    """(ball, steps in it), the widest first. The last is `ball`, with 0.4 of the steps and one at least."""
    if not widest > 1:
        return [(ball, steps)]
    early = min(-(-3 * steps // 10), steps - 1)
    later = min(early, steps - 1 - early)
    radii = ((widest, early), ((widest + 1) / 2, later))
    wide = [(replace(ball, eps=scale * ball.eps), count) for scale, count in radii if count]
    return [*wide, (ball, steps - early - later)]


def _first(x: Tensor, ball: Ball, rng: RowRandom) -> Tensor:
    """A random point of `ball`: uniform, or under l1 x + N(0, 1) per pixel, projected."""
    if ball.norm == "l1":
        return ball.start(x, "gaussian", rng)
    return ball.random_point(x, rng)


def _climb(
    ask: _Question,
    x: Tensor,
    goals: Tensor,
    x_adv: Tensor,
    ball: Ball,
    steps: int,
    rho: float,
    *,
    scored: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`steps` steps of Auto-PGD in one ball under linf or l2.

    Args:
        ask: gives loss and gradient.
        x, x_adv: clean pixels and the first point, [R, C, H, W]; the first point is projected on `ball`.
        goals: classes to head for, int64 [R, T].
        ball: where the steps stay.
        steps: >= 1.
        rho: as in `apgd`.
        scored: whether the points are met; false where `ball` is wider than the threat.

    Returns:
        (x, goals, the point of the largest loss among those asked here) of the rows still in play.
    """
    x_adv = x_old = x_best = ball.project(x, x_adv)
    loss, grad = ask(x_adv, goals, scored=scored)
    best = then = loss
    grad_best, rises = grad, torch.zeros_like(loss)
    was_cut = torch.ones_like(loss, dtype=torch.bool)
    a = x.new_full((len(x), 1, 1, 1), 2 * ball.eps)
    marks, last = checkpoints(steps), 0
    for k in range(1, steps + 1):
        x, goals, x_adv, x_old, x_best, grad, grad_best, loss, best, then, rises, was_cut, a = (
            ask.oracle.compact(
                x, goals, x_adv, x_old, x_best, grad, grad_best, loss, best, then, rises, was_cut, a
            )
        )
        if not len(x):
            break
        z = ball.project(x, torch.addcmul(x_adv, a, ball.steepest(grad)))
        if k > 1:
            z = ball.project(x, torch.lerp(x_adv, z, _KEPT).add_(x_adv - x_old, alpha=1 - _KEPT))
        x_old, x_adv, before = x_adv, z, loss
        loss, grad = ask(x_adv, goals, scored=scored)
        rises += loss > before
        better = loss > best
        best = torch.where(better, loss, best)
        x_best, grad_best = _where(better, x_adv, x_best), _where(better, grad, grad_best)
        if k in marks:
            cut = stalled(rises, k - last, rho, was_cut, best, then)
            a = _where(cut, a / 2, a)
            x_adv, grad = _where(cut, x_best, x_adv), _where(cut, grad_best, grad)
            was_cut, then, rises, last = cut, best, torch.zeros_like(rises), k
    return x, goals, x_best


def _climb_sparsely(
    ask: _Question, x: Tensor, goals: Tensor, x_adv: Tensor, ball: Ball, steps: int, *, scored: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`steps` steps in one l1 ball: x_{k+1} = P(x_k + a * s), s of l1 length 1 as in `_sparse`.

    a_0 is eps. A row counts the pixels in which its best point differs from x, first at the start and then
    every 0.04 * steps steps. s moves 2/3 of the last count. Where the count has fallen by more than 5 %, a
    becomes eps again, and the row goes on from its best point. Elsewhere a becomes a / 1.5, eps / 10 at
    least.

    Arguments and result are those of `_climb`.
    """
    x_adv = ball.project(x, x_adv)
    loss, grad = ask(x_adv, goals, scored=scored)
    x_best, grad_best, best = x_adv, grad, loss
    a = x.new_full((len(x), 1, 1, 1), ball.eps)
    changed = (x_adv != x).flatten(1).sum(1)
    gap, most = max(int(0.04 * steps), 1), _moved(changed)
    for k in range(1, steps + 1):
        x, goals, x_adv, x_best, grad, grad_best, best, a, changed = ask.oracle.compact(
            x, goals, x_adv, x_best, grad, grad_best, best, a, changed
        )
        if not len(x):
            break
        x_adv = ball.project(x, torch.addcmul(x_adv, a, _sparse(grad, changed, most)))
        loss, grad = ask(x_adv, goals, scored=scored)
        better = loss > best
        best = torch.where(better, loss, best)
        x_best, grad_best = _where(better, x_adv, x_best), _where(better, grad, grad_best)
        if k % gap == 0:
            before, changed = changed, (x_best != x).flatten(1).sum(1)
            most, fewer = _moved(changed), changed < 0.95 * before
            a = _where(fewer, torch.full_like(a, ball.eps), (a / 1.5).clamp_min(ball.eps / 10))
            x_adv, grad = _where(fewer, x_best, x_adv), _where(fewer, grad_best, grad)
    return x, goals, x_best


def _moved(changed: Tensor) -> int:
    """At least the largest m of `_sparse`, as a number: a device is waited for."""
    if not len(changed):
        return 1
    return int(changed.amax()) * 2 // 3 + 1


def _sparse(grad: Tensor, changed: Tensor, most: int) -> Tensor:
    """sign(grad) / m at the m pixels of the largest |grad|, else 0: a step of l1 length 1 per row.

    m = ceil(2/3 * changed), 1 at least; ties of the smallest are all taken. A row of zeros stays.
    grad: [R, C, H, W]; changed: int64 [R]; most: >= the largest m.
    """
    size = grad.abs().flatten(1)
    m = ((2 * changed + 2) // 3).clamp_(1, size.shape[1])
    least = size.topk(min(most, size.shape[1]), dim=1).values.gather(1, m[:, None] - 1)
    sign = grad.sign() * (size >= least).reshape(grad.shape)
    return sign / sign.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where `rows`, bool [R], is true, else `old`; both [R, C, H, W] or [R, 1, 1, 1]."""
    return torch.where(rows[:, None, None, None], new, old)
