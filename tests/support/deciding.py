"""A linear model of which labels are seen, with its exact distances, and a count of what it is asked."""

import math

import torch
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.random import RowRandom
from robustcli.evaluation.plan import AttackCall

DUAL = {"linf": 1, "l2": 2}


class Counted(nn.Module):
    """Two classes, divided by a plane near grey images of 36 pixels."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(36, generator=torch.Generator().manual_seed(3))
        self.w, self.asked = weight / weight.norm(), 0

    def forward(self, x):
        self.asked += len(x)
        z = (x.flatten(1) - 0.5) @ self.w
        return torch.stack((z, -z), 1)


def images(rows=4):
    """Images that the model is right on, their labels, and the model."""
    net = Counted()
    x = 0.45 + 0.1 * torch.rand(rows, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(1)


def exact(net, x, norm):
    """Distance of the plane."""
    return ((x.flatten(1) - 0.5) @ net.w).abs() / net.w.norm(p=DUAL[norm])


def searched(name, norm, queries, rows=4, ids=None, eps=0.0, watch=None, **more):
    """(oracle, x, x_adv, net, passes of each row) of one attack; the clean answer is free."""
    net, x, y = images(rows)
    call = AttackCall.of(registry.attacks.get(name), {"queries": queries, **more})
    ball, rng = Ball(norm, eps), RowRandom(0, "start", torch.arange(rows) if ids is None else ids)
    before = net.asked
    oracle = call.oracle(net, x, Criterion(y), rng=rng, ball=ball, clean_logits=net(x), watch=watch)
    x_adv = call.fn(oracle, x, ball, **call.params)
    return oracle, x, x_adv, net, (net.asked - before - rows) / rows


def far(x, x_adv, norm):
    """Distance of each row."""
    way = (x_adv - x).flatten(1)
    return way.abs().amax(1) if norm == "linf" else way.norm(dim=1)


def median_after(oracle, queries):
    """Median distance of the rows after so many queries."""
    best = torch.full((1 + max(int(rows.max()) for rows, _, _ in oracle.trace),), math.inf)
    for rows, spent, distance in oracle.trace:
        for row, count, value in zip(rows.tolist(), spent.tolist(), distance.tolist(), strict=True):
            if count <= queries:
                best[row] = min(best[row], value)
    return float(best.median())
