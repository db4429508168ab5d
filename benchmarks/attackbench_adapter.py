"""Our attacks as AttackBench calls them: f(model, inputs, labels, threat_model) -> x_adv.

The model that is passed is asked itself, without a search twin: its counters see every pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.geometry import Ball, Norm
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

Attack = Callable[[nn.Module, Tensor, Tensor, str], Tensor]
#: The first radius of a search for the smallest one; AttackBench's own wrappers begin there, too.
FIRST: dict[str, float] = {"linf": 1 / 255, "l2": 1.0, "l1": 10.0}


class Unfilled(nn.Module):
    """The same logits, without asking for copies of the last row: with them a shrinking batch is filled up.

    AttackBench would count each copy as a pass over that image.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        same = (x == x[-1:]).flatten(1).all(1)
        once = len(x) - int(same.flip(0).long().cumprod(0).sum()) + 1
        logits = self.model(x[:once])
        return torch.cat((logits, logits[-1:].expand(len(x) - once, -1)))


def minimal(name: str, **params: Any) -> Attack:
    """A minimal-norm attack with these parameters: the nearest success that it meets of each image."""

    def attack(model: nn.Module, inputs: Tensor, labels: Tensor, threat_model: Norm) -> Tensor:
        pixels = math.prod(inputs.shape[1:])
        widest = {"linf": 1.0, "l2": math.sqrt(pixels)}.get(threat_model, float(pixels))
        ball, rng = Ball(threat_model, widest), RowRandom(0, "start", torch.arange(len(inputs)))
        oracle = Oracle(model, inputs, Criterion(labels), rng=rng, keep="closest", ball=ball)
        return registry.attacks.get(name).fn(oracle, inputs, ball, **params)

    return attack


def fixed(name: str, *, rounds: int = 20, **params: Any) -> Attack:
    """A fixed-radius attack at the smallest radius that it breaks each image in, as AttackBench looks for it.

    The radius doubles until the image falls, and is then searched for by halves. An image leaves a round
    with its first error, as in our evaluations.
    """

    def attack(model: nn.Module, inputs: Tensor, labels: Tensor, threat_model: Norm) -> Tensor:
        x_adv, low = inputs.clone(), inputs.new_zeros(len(inputs))
        most = 2.0 if threat_model == "linf" else math.inf
        high, eps = torch.full_like(low, most), torch.full_like(low, FIRST[threat_model])
        for _ in range(rounds):
            if getattr(model, "is_out_of_query_budget", False):
                break
            tried = inputs.clone()
            for radius in eps.unique().tolist():
                rows, ball = (eps == radius).nonzero()[:, 0], Ball(threat_model, radius)
                tried[rows] = _broken(name, params, model, inputs, labels, rows, ball)
            with torch.no_grad():
                fell = (model(tried).argmax(1) != labels) & (eps < high)
            x_adv[fell] = tried[fell]
            low, high = torch.where(fell, low, eps), torch.where(fell, eps, high)
            eps = torch.where((high < most) | (2 * low >= high), (low + high) / 2, 2 * low)
        return x_adv

    return attack


def _broken(
    name: str, params: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, ball: Ball
) -> Tensor:
    """The worst points [R, C, H, W] of these rows in the ball; a row leaves with its first error."""
    oracle = Oracle(
        Unfilled(model),
        x[rows],
        Criterion(y[rows]),
        rng=RowRandom(0, "start", rows),
        keep="best",
        watch=lambda places, points: torch.ones_like(places, dtype=torch.bool),
    )
    ahead = oracle.compact(x[rows])[0]  # images that are wrong already cost nothing
    return registry.attacks.get(name).fn(oracle, ahead, ball, **params)
