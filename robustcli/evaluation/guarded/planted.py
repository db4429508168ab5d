"""A known point that is wrong and accepted, planted behind the defences: does the search find it?

The networks are changed, the defences are not. Each member gets a bump around what the purifiers leave of the
point. There it prefers another class, and detectors that read the network see that class too. A search whose
gradients the defences mask does not find the point, although it is there.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.evaluation.judge import Judge, exact_fp32
from robustcli.models.guarded import GuardedModel

_RADII = (1.0, 0.5, 0.25)  # in units of eps, tried in this order: detectors accept the near ones more often
#: Height of a bump in units of what the other class lacks at its point, and width in units of the distance
#: to the clean image. A vote that wants all to be sure needs a high one, and x stays right if it is narrow.
_SHAPES = ((1.25, 1.0), (2.0, 0.75), (5.0, 0.5))
_LOOKS = 8  # passes over which a random purifier is averaged


class Bumped(nn.Module):
    """z(u) + sum_i exp(-||u - c_i||^2 / (2 s_i^2)) h_i: a network with m bumps.

    Args:
        net: what a member sees [B, C, H, W] -> logits [B, K].
        centres: c [m, C, H, W].
        widths: s [m], > 0; 0 for no bump.
        heights: h [m, K].
    """

    centres: Tensor
    widths: Tensor
    heights: Tensor

    def __init__(self, net: nn.Module, centres: Tensor, widths: Tensor, heights: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("centres", centres.flatten(1))
        self.register_buffer("widths", widths)
        self.register_buffer("heights", heights)

    @property
    def info(self) -> object:
        """That of the network."""
        return getattr(self.net, "info", None)

    def forward(self, u: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = self.net(u)
        apart = (u.flatten(1)[:, None] - self.centres[None]).square().sum(2)
        bumps = torch.exp(-apart / (2 * self.widths.square()).clamp_min(1e-12)) * (self.widths > 0)
        return logits + bumps @ self.heights


class Planted(NamedTuple):
    """The changed model, and which of the n rows have their point: bool [n], wrong and accepted there."""

    model: GuardedModel
    rows: Tensor


def plant(
    model: GuardedModel, x: Tensor, y: Tensor, ids: Tensor, ball: Ball, *, seed: int, draws: int
) -> Planted:
    """Plant one point in the ball of each row that is right and accepted.

    The point is x plus signs drawn for the row, scaled to the radius. Its class is the likeliest wrong one at
    x. The bump is about as wide as the point is far, so that it has a slope at x: with less, the search would
    have to find a needle. A row where x would be wrong too, or its point rejected, tries a higher and
    narrower bump, then a smaller radius.

    Args:
        model: the guarded model.
        x: pixels [n, C, H, W] in [0, 1].
        y, ids: labels and sample ids, int64 [n].
        ball: the threat.
        seed: of the signs.
        draws: passes per judgement.
    """
    signs = torch.where(RowRandom(seed, "plant", ids).uniform(tuple(x.shape[1:])) < 0.5, -1.0, 1.0)
    done = torch.zeros_like(y, dtype=torch.bool)
    points, bumps = x.clone(), _no_bumps(model, x)
    with frozen(model), torch.no_grad(), exact_fp32():
        for radius, (lead, narrow) in itertools.product(_RADII, _SHAPES):
            near = ball.scaled(radius).project(x, x + signs)
            tried, open_rows = _bumps(model, x, y, near, lead, narrow), ~done
            bumps = _Bumps(*(_mixed(open_rows, new, old) for new, old in zip(tried, bumps, strict=True)))
            points = _mixed(open_rows, near, points)
            planted = _with(model, bumps)
            judge = Judge(planted, ball, draws=draws)
            hit = judge.rule(x, points, judge.criterion(y)).hit
            done = hit & judge.clean(x, y).right
            bumps = bumps._replace(widths=bumps.widths * done)
        return Planted(_with(model, bumps), done)


class _Bumps(NamedTuple):
    """centres [n, C, H, W], widths [n], and the heights of each member, [n, M, K]."""

    centres: Tensor
    widths: Tensor
    heights: Tensor


def _no_bumps(model: GuardedModel, x: Tensor) -> _Bumps:
    heights = x.new_zeros(len(x), len(model.members), model.reject)
    return _Bumps(x.clone(), x.new_zeros(len(x)), heights)


def _bumps(model: GuardedModel, x: Tensor, y: Tensor, points: Tensor, lead: float, narrow: float) -> _Bumps:
    """A bump of each row at its point [n, C, H, W]; lead, narrow: its shape, see `_SHAPES`."""
    looks = 1 + (_LOOKS - 1) * model.randomised
    at_point = torch.stack([model.purified(points) for _ in range(looks)])
    centres = at_point.mean(0)
    far = (centres - torch.stack([model.purified(x) for _ in range(looks)]).mean(0)).flatten(1).norm(dim=1)
    spread = (at_point - centres).flatten(2).square().sum(2).mean(0)  # of the draws of a random purifier
    wanted = model.net(x).scatter(1, y[:, None], float("-inf")).argmax(1)
    one = torch.nn.functional.one_hot(wanted, model.reject).to(x.dtype)
    heights = []
    for member in model.members:
        logits = member(centres)
        lacking = logits.amax(1) - logits.gather(1, wanted[:, None])[:, 0]
        heights.append(lead * lacking[:, None] * one)
    return _Bumps(centres, narrow * (far.square() + spread).sqrt(), torch.stack(heights, 1))


def _mixed(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows bool [n], `old` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def _with(model: GuardedModel, bumps: _Bumps) -> GuardedModel:
    """The guarded model with changed members; its defences and thresholds are the same."""
    members = [
        Bumped(member, bumps.centres, bumps.widths, bumps.heights[:, k])
        for k, member in enumerate(model.members)
    ]
    planted = (
        GuardedModel(members, model.defences, model.reject, scale=model.scale).eval().to(bumps.centres.device)
    )
    planted.thresholds, planted.spreads = model.thresholds.clone(), model.spreads.clone()
    return planted
